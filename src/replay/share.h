#pragma once

#include <vector>

#include "laprox/ranks.h"
#include "laprox/shares.h"

namespace laprox {

/// What one rank does of a dump.
struct Share {
  Ranks& ranks;
  std::vector<Index> layers;  ///< those that it holds, ascending

  /// The layers of a dump that this rank holds, `rank_of` being each one's rank.
  static Share of(Ranks& ranks, const std::vector<Index>& rank_of) { return {ranks, layers_of(rank_of, ranks.rank())}; }
};

}  // namespace laprox
