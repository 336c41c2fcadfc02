#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "laprox/backend.h"

namespace laprox {

/// Query rows of one task that judges; on the CPU the logits of one block of tokens against them are one buffer, and
/// stay in the cache, with the tokens' values, while one policy after the other sums over them.
inline constexpr Index kRowsPerTask = 256, kBlockTokens = 4096;
/// Head outputs that are held at once; more policies than fit are taken in turns.
inline constexpr Index kHeldElements = Index{1} << 26;

/// How many cells of (policy, budget) are taken in one turn. A cell holds two head outputs of every query, what is kept
/// and its difference to the exact one.
inline Index cells_per_batch(const LayerTensors& layer) {
  const Index cell = 2 * layer.queries() * layer.geometry.query_heads * layer.geometry.value_size;
  return std::max<Index>(1, kHeldElements / std::max<Index>(1, cell));
}

/// Sets kept_square and kept_product of every query from query_error and `products` <delta_t, exact_t>, and returns
/// the queries for which that loses digits: those whose kept output is less than half as long as the exact one, or more
/// than 60 degrees from it, so that ||o||^2 + 2 <o, delta> + ||delta||^2 or ||o||^2 + <o, delta> cancels. Their kept
/// outputs must be summed themselves.
std::vector<Index> set_kept_sums(const Matrix& exact, std::span<const double> products, OutputError& error);

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
