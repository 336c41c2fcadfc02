#include "allocators/top_k.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>

#include "base/exchange.h"
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

/// Thresholds between two others that divide the way between them into `parts`, as far as it goes.
std::vector<std::int64_t> thresholds_between(std::int64_t reached, std::int64_t missed, std::uint64_t parts) {
  const std::uint64_t width = static_cast<std::uint64_t>(missed) - static_cast<std::uint64_t>(reached);
  const std::uint64_t step = std::max<std::uint64_t>(1, width / parts);
  std::vector<std::int64_t> thresholds;
  for (std::uint64_t at = step; at < width && thresholds.size() + 1 < parts; at += step) {
    thresholds.push_back(static_cast<std::int64_t>(static_cast<std::uint64_t>(reached) + at));
  }
  return thresholds;
}

/// The largest threshold that at least k entries of all ranks reach. Several ranks try more thresholds at a time,
/// because an exchange takes them longer than counting.
std::int64_t cut(const std::vector<ScoreList>& lists, Index k, Ranks& ranks) {
  const std::uint64_t parts = ranks.size() == 1 ? 2 : 16;
  std::int64_t reached = INT64_MIN, missed = INT64_MAX;
  while (reached + 1 < missed) {
    const std::vector<std::int64_t> thresholds = thresholds_between(reached, missed, parts);
    std::vector<Index> totals;
    for (const std::int64_t threshold : thresholds) totals.push_back(total_at_least(lists, threshold));
    totals = sums_over_ranks(ranks, totals);
    const auto short_of_k = std::find_if(totals.begin(), totals.end(), [&](Index total) { return total < k; });
    const auto reaching = static_cast<std::size_t>(short_of_k - totals.begin());
    if (reaching < thresholds.size()) missed = thresholds[reaching];
    if (reaching > 0) reached = thresholds[reaching - 1];
  }
  return reached;
}

}  // namespace

std::vector<Index> top_k_counts(const std::vector<ScoreList>& lists, Index k, Ranks& ranks) {
  std::vector<Index> counts(lists.size(), 0);
  if (k == 0) return counts;
  const std::int64_t threshold = cut(lists, k, ranks);
  std::vector<Index> above_and_tied;
  for (const ScoreList& list : lists) {
    above_and_tied.push_back(count_at_least(list, threshold + 1));
    above_and_tied.push_back(count_at_least(list, threshold) - above_and_tied.back());
  }
  above_and_tied = sums_over_ranks(ranks, above_and_tied);
  Index left = k;
  for (std::size_t i = 0; i < lists.size(); ++i) left -= counts[i] = above_and_tied[2 * i];
  require(left >= 0, "fewer than k entries exceed the cut");
  for (std::size_t i = 0; i < lists.size() && left > 0; ++i) {
    const Index tied = std::min(left, above_and_tied[2 * i + 1]);
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
