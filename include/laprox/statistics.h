#pragma once

#include <span>

#include "laprox/tensor.h"

namespace laprox {

/// What some samples of one figure say together.
struct Summary {
  double mean = 0;
  double deviation = 0;  ///< standard deviation, with n - 1; 0 of one sample
  double lower_quartile = 0, median = 0, upper_quartile = 0;
};

/// `samples` must not be empty.
Summary summarize(std::span<const double> samples);

/// Below this many pairs, no two-sided test at 5 % can tell two policies apart: with 5 the smallest p is 2 / 2^5.
inline constexpr Index kFewestPairs = 6;
inline constexpr double kSignificance = 0.05;

/// Wilcoxon's signed-rank test of differences against a median of 0, two-sided. Differences of 0 are left out. Exact
/// for at most 25 differences without ties; else the normal approximation, with the variance corrected for ties and no
/// correction for continuity. Source: F. Wilcoxon, Individual comparisons by ranking methods, 1945; Hollander and
/// Wolfe, Nonparametric statistical methods, chapter 3.
struct SignedRanks {
  Index count = 0;      ///< differences other than 0
  double positive = 0;  ///< sum of the ranks of positive differences
  double p = 1;         ///< probability of a sum at least as far from its mean, if neither is better
};
SignedRanks signed_rank_test(std::span<const double> differences);

/// How one policy's figure differs from another's on the same dumps.
struct PairedDifference {
  Index pairs = 0;
  Index lower = 0, higher = 0;  ///< pairs in which a is below b, and above
  double mean = 0;              ///< mean of a - b
  double estimate = 0;          ///< Hodges-Lehmann: median of the means of any two differences (each with itself too)
  /// The confidence interval of the estimate that belongs to the signed-rank test, of at least 95 %; without ends where
  /// there are fewer than kFewestPairs.
  double interval_low = 0, interval_high = 0;
  double p = 1;  ///< of the signed-rank test

  bool enough() const { return pairs >= kFewestPairs; }
};

/// a[i] and b[i] belong to the same dump; finite.
PairedDifference compare_pairs(std::span<const double> a, std::span<const double> b);

}  // namespace laprox
