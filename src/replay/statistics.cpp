#include "laprox/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "laprox/error.h"
#include "laprox/metrics.h"

namespace laprox {

namespace {

constexpr Index kLargestExact = 25;

/// The magnitudes' ranks from 1 on; equal ones share their mean rank. `tie_term`: sum over ties of t^3 - t.
std::vector<double> ranks_of(const std::vector<double>& differences, double& tie_term) {
  std::vector<std::size_t> order(differences.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto size = [&](std::size_t i) { return std::abs(differences[i]); };
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return size(a) < size(b); });
  std::vector<double> ranks(differences.size());
  for (std::size_t first = 0, last = 0; first < order.size(); first = last) {
    while (last < order.size() && size(order[last]) == size(order[first])) ++last;
    const double tied = static_cast<double>(last - first);
    tie_term += tied * tied * tied - tied;
    for (std::size_t i = first; i < last; ++i) ranks[order[i]] = static_cast<double>(first + last + 1) / 2;
  }
  return ranks;
}

/// P(W <= w) for w = 0 .. n (n + 1) / 2 where each of the ranks 1 .. n is positive with probability 1/2.
std::vector<double> exact_distribution(Index n) {
  std::vector<double> chance(static_cast<std::size_t>(n * (n + 1) / 2 + 1), 0.0);
  chance[0] = 1;
  for (Index rank = 1; rank <= n; ++rank) {
    for (std::size_t w = chance.size(); w-- > 0;) {
      const auto without = static_cast<std::size_t>(rank);
      chance[w] = chance[w] / 2 + (w >= without ? chance[w - without] / 2 : 0);
    }
  }
  std::partial_sum(chance.begin(), chance.end(), chance.begin());
  return chance;
}

double variance_of(double n, double tie_term) { return n * (n + 1) * (2 * n + 1) / 24 - tie_term / 48; }

/// The largest number of mean pairs that may be cut off either end of their order, so that what remains covers the
/// median with at least 95 %.
Index pairs_beyond(Index n) {
  const Index pairs = n * (n + 1) / 2;
  if (n <= kLargestExact) {
    const std::vector<double> below = exact_distribution(n);
    Index cut = 0;
    while (cut < pairs && below[cut] <= kSignificance / 2) ++cut;
    return cut;  // P(W <= cut - 1) <= 2.5 %
  }
  constexpr double kNormalQuantile = 1.959963984540054;
  const double count = static_cast<double>(n);
  return static_cast<Index>(
      std::floor(static_cast<double>(pairs) / 2 - kNormalQuantile * std::sqrt(variance_of(count, 0))));
}

}  // namespace

Summary summarize(std::span<const double> samples) {
  require(!samples.empty(), "samples to summarise");
  Summary summary;
  const double count = static_cast<double>(samples.size());
  for (const double sample : samples) summary.mean += sample / count;
  for (const double sample : samples) {
    if (samples.size() > 1) summary.deviation += (sample - summary.mean) * (sample - summary.mean) / (count - 1);
  }
  summary.deviation = std::sqrt(summary.deviation);
  const std::vector<double> values(samples.begin(), samples.end());
  if (std::any_of(values.begin(), values.end(), [](double value) { return std::isnan(value); })) {
    summary.lower_quartile = summary.median = summary.upper_quartile = std::numeric_limits<double>::quiet_NaN();
    return summary;
  }
  summary.lower_quartile = quantile(values, 0.25);
  summary.median = quantile(values, 0.5);
  summary.upper_quartile = quantile(values, 0.75);
  return summary;
}

SignedRanks signed_rank_test(std::span<const double> all) {
  std::vector<double> differences;
  std::copy_if(all.begin(), all.end(), std::back_inserter(differences), [](double x) { return x != 0; });
  SignedRanks result;
  result.count = static_cast<Index>(differences.size());
  if (differences.empty()) return result;
  double tie_term = 0;
  const std::vector<double> ranks = ranks_of(differences, tie_term);
  for (std::size_t i = 0; i < ranks.size(); ++i) result.positive += differences[i] > 0 ? ranks[i] : 0;
  const double n = static_cast<double>(result.count), most = n * (n + 1) / 2;
  if (result.count <= kLargestExact && tie_term == 0) {
    const double smaller = std::min(result.positive, most - result.positive);
    result.p = std::min(1.0, 2 * exact_distribution(result.count)[smaller]);
  } else {
    const double z = (result.positive - most / 2) / std::sqrt(variance_of(n, tie_term));
    result.p = std::erfc(std::abs(z) / std::sqrt(2.0));
  }
  return result;
}

PairedDifference compare_pairs(std::span<const double> a, std::span<const double> b) {
  require(a.size() == b.size() && !a.empty(), "the same dumps of both policies");
  PairedDifference result;
  result.pairs = static_cast<Index>(a.size());
  std::vector<double> differences, means;
  for (std::size_t i = 0; i < a.size(); ++i) {
    differences.push_back(a[i] - b[i]);
    result.lower += differences.back() < 0;
    result.higher += differences.back() > 0;
  }
  for (std::size_t i = 0; i < differences.size(); ++i) {
    for (std::size_t j = 0; j <= i; ++j) means.push_back((differences[i] + differences[j]) / 2);
  }
  std::sort(means.begin(), means.end());
  result.mean = summarize(differences).mean;
  result.estimate = quantile(means, 0.5);
  result.p = signed_rank_test(differences).p;
  result.interval_low = -std::numeric_limits<double>::infinity();
  result.interval_high = std::numeric_limits<double>::infinity();
  if (!result.enough()) return result;
  const auto cut = static_cast<std::size_t>(std::max<Index>(1, pairs_beyond(result.pairs)));
  result.interval_low = means[cut - 1];
  result.interval_high = means[means.size() - cut];
  return result;
}

}  // namespace laprox
