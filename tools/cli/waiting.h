#pragma once

namespace laprox::cli {

/// Lets threads that wait for others give their processor back at once. GCC's OpenMP has them spin for milliseconds,
/// which costs nothing where the machine is idle and makes the whole program several times slower where it is not:
/// beside other programs, or in a container with a share of the processors. It reads its environment before main does,
/// so the program starts itself once more, the first thing that main does. What the user has set, stands.
void wait_without_spinning(char** argv);

}  // namespace laprox::cli
