#pragma once

#include <memory>
#include <string>

#include "laprox/ranks.h"

namespace laprox::cli {

/// The processes that this one works with: those of an MPI job where laprox was built with MPI and is asked for a
/// sweep, else none. MPI is initialised then, and finalised with the object.
std::unique_ptr<Ranks> join_ranks(int& argc, char**& argv);

/// How one rank ended.
struct Ending {
  int status = 0;
  std::string message;  ///< why, where that is not 0
};

/// Waits for the other ranks. Returns the exit status of all; the first rank that failed says why.
int end_together(Ranks& ranks, const Ending& mine);

}  // namespace laprox::cli
