#pragma once

#include <memory>

#include "laprox/ranks.h"

namespace laprox {

/// The processes of an MPI job, or this one alone where no launcher started it (of a launcher that is not recognised,
/// the variable LAPROX_MPI tells). Initialises MPI, which is finalised with the object: make one in a program, and call
/// it from the thread that made it. An error within MPI ends all processes. Part of the library laprox::mpi, which is
/// built with the option LAPROX_MPI.
std::unique_ptr<Ranks> make_mpi_ranks(int& argc, char**& argv);

}  // namespace laprox
