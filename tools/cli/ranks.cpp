#include "ranks.h"

#include <algorithm>
#include <string_view>

#include "output.h"
#ifdef LAPROX_MPI
#include "laprox/mpi_ranks.h"
#endif

namespace laprox::cli {

std::unique_ptr<Ranks> join_ranks([[maybe_unused]] int& argc, [[maybe_unused]] char**& argv) {
#ifdef LAPROX_MPI
  const bool sweeps =
      std::any_of(argv, argv + argc, [](const char* word) { return word == std::string_view("sweep"); });
  if (sweeps) return make_mpi_ranks(argc, argv);
#endif
  return std::make_unique<SingleRank>();
}

int end_together(Ranks& ranks, const Ending& mine) {
  const std::optional<Failure> failure = ranks.conclude(mine.status);
  if (!failure) return 0;
  if (failure->rank == ranks.rank()) {
    speak(true);
    note(mine.message);
  }
  return failure->status;
}

}  // namespace laprox::cli
