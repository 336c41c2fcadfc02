#include "laprox/ranking.h"

#include <algorithm>
#include <numeric>

#include "laprox/error.h"
#include "policy/descending.h"

namespace laprox {

Ranking rank_by_score(std::span<const double> scores, const Pins& pins) {
  const Index context = static_cast<Index>(scores.size());
  Ranking order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto unpinned = std::stable_partition(order.begin(), order.end(),
                                              [&](std::int32_t token) { return pins.contains(token, context); });
  // The partition leaves tokens ascending, so ties are broken by token.
  sort_descending({unpinned, order.end()}, scores);
  return order;
}

std::vector<std::int32_t> worst_by_score(std::span<const double> scores, const Pins& pins, Index count) {
  const Index context = static_cast<Index>(scores.size()), evicted = context - count;
  const auto score = [&](std::int32_t token) { return scores[token]; };
  const auto worse = [&](std::int32_t a, std::int32_t b) {
    return score(a) < score(b) || (score(a) == score(b) && a > b);
  };
  if (evicted <= 0) return {};
  std::vector<std::int32_t> tokens;
  for (Index token = pins.first; token < context - pins.last; ++token)
    tokens.push_back(static_cast<std::int32_t>(token));
  require(evicted <= static_cast<Index>(tokens.size()), "a budget holds the pinned tokens");
  // While a model decodes token by token there is one to evict.
  if (evicted == 1) return {*std::min_element(tokens.begin(), tokens.end(), worse)};
  std::nth_element(tokens.begin(), tokens.begin() + (evicted - 1), tokens.end(), worse);
  tokens.resize(static_cast<std::size_t>(evicted));
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

}  // namespace laprox
