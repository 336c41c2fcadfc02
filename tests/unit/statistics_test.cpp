#include "laprox/statistics.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

namespace laprox {

// The p-values are those of scipy.stats.wilcoxon, SciPy 1.17.1: method "exact" where the test is exact, else method
// "asymptotic" with zero_method "wilcox" and correction False.

TEST_CASE("the signed-rank test is exact for few differences without ties") {
  const std::vector<double> a{0.31, -0.12, 0.55, 0.08, 0.91, 0.27, -0.04};
  CHECK(signed_rank_test(a).positive == 24);  // scipy gives the smaller sum, 4
  CHECK(signed_rank_test(a).p == doctest::Approx(0.109375).epsilon(1e-14));
  CHECK(signed_rank_test(std::vector{1.5, -2.5, 3.5, 4.5, 5.5, 6.5}).p == doctest::Approx(0.09375).epsilon(1e-14));
  // Six differences of one sign are the fewest that 5 % can tell from chance.
  CHECK(signed_rank_test(std::vector{1.0, 2.0, 3.0, 4.0, 5.0, 6.0}).p == doctest::Approx(0.03125).epsilon(1e-14));
  CHECK(signed_rank_test(std::vector{-1.0, -2.0, -3.0, -4.0, -5.0}).p > kSignificance);
}

TEST_CASE("ties, zeros and many differences take the corrected normal approximation") {
  const std::vector<double> tied{0.5, 0.5, -0.5, 1.0, 1.0, 0.0, 2.0, -1.0, 3.0, 0.25};
  CHECK(signed_rank_test(tied).count == 9);
  CHECK(signed_rank_test(tied).p == doctest::Approx(0.10724840479246954).epsilon(1e-12));
  std::vector<double> many;
  for (int i = 0; i < 40; ++i) many.push_back((i * 37 % 61 - 22) / 10.0 + 0.001 * i);
  CHECK(signed_rank_test(many).p == doctest::Approx(0.02153551737775828).epsilon(1e-12));
  CHECK(signed_rank_test(std::vector{0.0, 0.0}).p == 1);
}

TEST_CASE("a paired difference has the interval of its test") {
  const std::vector<double> a{0.31, -0.12, 0.55, 0.08, 0.91, 0.27, -0.04}, zero(7, 0.0);
  const PairedDifference found = compare_pairs(a, zero);
  CHECK(found.lower == 2);
  CHECK(found.higher == 5);
  CHECK(found.mean == doctest::Approx(0.28));
  CHECK(found.estimate == doctest::Approx(0.2625));  // the median of the 28 means of two differences
  // P(W <= 2) = 3 / 128 is the last below 2.5 %, so that the third mean from either end bounds the interval.
  CHECK(found.interval_low == doctest::Approx(-0.04));
  CHECK(found.interval_high == doctest::Approx(0.61));
  CHECK(found.p == doctest::Approx(0.109375));
  const PairedDifference turned = compare_pairs(zero, a);
  CHECK(turned.estimate == doctest::Approx(-found.estimate));
  CHECK(turned.interval_low == doctest::Approx(-found.interval_high));
}

TEST_CASE("fewer than six pairs say nothing") {
  const PairedDifference found = compare_pairs(std::vector{1.0, 2, 3, 4, 5}, std::vector{0.0, 0, 0, 0, 0});
  CHECK_FALSE(found.enough());
  CHECK(std::isinf(found.interval_low));
  CHECK(found.p > kSignificance);
}

TEST_CASE("a summary's quartiles interpolate") {
  const Summary of = summarize(std::vector{4.0, 1.0, 3.0, 2.0});
  CHECK(of.mean == 2.5);
  CHECK(of.deviation == doctest::Approx(std::sqrt(5.0 / 3)));
  CHECK(of.lower_quartile == 1.75);
  CHECK(of.median == 2.5);
  CHECK(of.upper_quartile == 3.25);
  CHECK(summarize(std::vector{7.0}).deviation == 0);
}

}  // namespace laprox
