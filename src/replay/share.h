#pragma once

#include <vector>

#include "laprox/ranks.h"

namespace laprox {

/// What one rank does of a dump.
struct Share {
  Ranks& ranks;
  std::vector<Index> layers;  ///< those that it holds, ascending

  /// The layers of a dump that this rank holds, `rank_of` being each one's rank.
  static Share of(Ranks& ranks, const std::vector<Index>& rank_of) {
    Share share{ranks, {}};
    for (std::size_t layer = 0; layer < rank_of.size(); ++layer) {
      if (rank_of[layer] == ranks.rank()) share.layers.push_back(static_cast<Index>(layer));
    }
    return share;
  }
};

}  // namespace laprox
