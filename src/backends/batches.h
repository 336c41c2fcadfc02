#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "laprox/backend.h"

namespace laprox {

/// Calls batch(policies) for one stretch of `policies` after the other, each with at most `most_cells` cells of
/// (policy, budget), and at least one policy; once, with none, where there are none.
template <class Batch>
void for_each_batch(std::span<const LayerKeep> policies, Index most_cells, const Batch& batch) {
  std::size_t first = 0;
  do {
    Index cells = 0;
    std::size_t last = first;
    while (last < policies.size() && (last == first || cells < most_cells)) {
      cells += static_cast<Index>(policies[last++].counts.size());
    }
    batch(policies.subspan(first, last - first));
    first = last;
  } while (first < policies.size());
}

/// Sets every error's bound: the sum of the evicted entries' terms ||A_h[:, i]|| ||v_i W_O^h||, `terms` [query_heads,
/// C]. An entry that a group of `group` query heads reads has the sum of theirs.
void set_bounds(const Matrix& terms, Index group, std::span<const LayerKeep> policies, LayerErrors& result);

}  // namespace laprox
