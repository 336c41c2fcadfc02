#include "laprox/ranking.h"

#include <algorithm>
#include <numeric>

namespace laprox {

Ranking rank_by_score(std::span<const double> scores, const Pins& pins) {
  const Index context = static_cast<Index>(scores.size());
  Ranking order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto unpinned = std::stable_partition(order.begin(), order.end(),
                                              [&](std::int32_t token) { return pins.contains(token, context); });
  // The partition leaves tokens ascending, so a stable sort breaks ties by token.
  std::stable_sort(unpinned, order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  return order;
}

}  // namespace laprox
