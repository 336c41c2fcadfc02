#pragma once

namespace laprox {

/// Files are opened in a child process first, because damaged ones can crash the HDF5 library. After trust_files(true)
/// they are not, for all files of this process: a few milliseconds less each.
void trust_files(bool trust);

}  // namespace laprox
