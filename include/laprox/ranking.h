#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "laprox/tensor.h"

namespace laprox {

/// Context tokens that a policy keeps whatever their score; they count inside the budget.
struct Pins {
  Index first = 0;  ///< the first tokens of the context (attention sinks)
  Index last = 0;   ///< the last tokens of the context (observation window, recent tokens)

  Index count(Index context_length) const { return std::min(context_length, first + last); }
  bool contains(Index token, Index context_length) const { return token < first || token >= context_length - last; }
  bool operator==(const Pins&) const = default;
};

/// A permutation of one KV head's context tokens, best first: a budget of n keeps the first n.
using Ranking = std::vector<std::int32_t>;

/// Pinned tokens first (ascending), then score descending; ties: token ascending.
Ranking rank_by_score(std::span<const double> scores, const Pins& pins);

/// The tokens that rank_by_score puts behind its first `count`, ascending, without ranking the others.
std::vector<std::int32_t> worst_by_score(std::span<const double> scores, const Pins& pins, Index count);

}  // namespace laprox
