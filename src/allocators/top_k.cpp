#include "allocators/top_k.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>

#include "laprox/error.h"

namespace laprox {

namespace {

/// Maps doubles to integers of the same order, so that a threshold can be bisected bit by bit.
std::int64_t ordered(double value) {
  const auto bits = std::bit_cast<std::int64_t>(value + 0.0);  // + 0.0 makes -0 and 0 one value
  return bits >= 0 ? bits : static_cast<std::int64_t>(0x8000000000000000ULL - static_cast<std::uint64_t>(bits));
}

/// Entries whose ordered value is at least `threshold`.
Index count_at_least(const ScoreList& list, std::int64_t threshold) {
  const auto end = std::partition_point(list.scores.begin(), list.scores.end(),
                                        [&](double score) { return ordered(score / list.divisor) >= threshold; });
  return end - list.scores.begin();
}

Index total_at_least(const std::vector<ScoreList>& lists, std::int64_t threshold) {
  Index total = 0;
  for (const ScoreList& list : lists) total += count_at_least(list, threshold);
  return total;
}

/// The largest threshold that at least k entries reach.
std::int64_t cut(const std::vector<ScoreList>& lists, Index k) {
  std::int64_t reached = INT64_MIN, missed = INT64_MAX;
  while (reached + 1 < missed) {
    const std::int64_t middle = std::midpoint(reached, missed);
    (total_at_least(lists, middle) >= k ? reached : missed) = middle;
  }
  return reached;
}

}  // namespace

std::vector<Index> top_k_counts(const std::vector<ScoreList>& lists, Index k) {
  std::vector<Index> counts(lists.size(), 0);
  if (k == 0) return counts;
  const std::int64_t threshold = cut(lists, k);
  Index left = k;
  for (std::size_t i = 0; i < lists.size(); ++i) left -= counts[i] = count_at_least(lists[i], threshold + 1);
  require(left >= 0, "fewer than k entries exceed the cut");
  for (std::size_t i = 0; i < lists.size() && left > 0; ++i) {
    const Index tied = std::min(left, count_at_least(lists[i], threshold) - counts[i]);
    counts[i] += tied;
    left -= tied;
  }
  require(left == 0, "the lists hold k entries");
  return counts;
}

std::vector<Index> top_k_counts_above(const std::vector<std::vector<double>>& lists, Index guaranteed, Index k) {
  const Index count = static_cast<Index>(lists.size()), sure = std::min(guaranteed, k / count);
  std::vector<ScoreList> rest;
  for (const auto& list : lists) rest.push_back({std::span(list).subspan(static_cast<std::size_t>(sure))});
  std::vector<Index> counts = top_k_counts(rest, k - count * sure);
  for (Index& each : counts) each += sure;
  return counts;
}

}  // namespace laprox
