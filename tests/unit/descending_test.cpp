#include "policy/descending.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace laprox::testing {

namespace {

std::vector<std::int32_t> by_comparison(std::vector<std::int32_t> tokens, const std::vector<double>& scores) {
  std::stable_sort(tokens.begin(), tokens.end(), [&](std::int32_t a, std::int32_t b) { return scores[a] > scores[b]; });
  return tokens;
}

}  // namespace

TEST_CASE("tokens are sorted as a stable comparison sorts them, however many there are") {
  using Limits = std::numeric_limits<double>;
  const std::vector<double> odd{0.0,
                                -0.0,
                                Limits::infinity(),
                                -Limits::infinity(),
                                Limits::denorm_min(),
                                -Limits::min(),
                                1e-3,
                                1e-3,
                                Limits::max(),
                                Limits::lowest(),
                                5.0,
                                -5.0};
  std::mt19937_64 random(4);
  for (const std::size_t size : {1, 2, 2047, 2048, 5000}) {
    for (const int kind : {0, 1, 2, 3}) {
      std::vector<double> scores(size);
      for (double& score : scores) {
        const double normal = std::normal_distribution<>()(random);
        score = kind == 0   ? normal
                : kind == 1 ? static_cast<float>(normal)   // low bits are 0
                : kind == 2 ? std::round(4 * normal)       // ties
                            : odd[random() % odd.size()];  // the ends of the range, and both zeros
      }
      std::vector<std::int32_t> tokens(size);
      std::iota(tokens.begin(), tokens.end(), 0);
      tokens.erase(std::remove_if(tokens.begin(), tokens.end(), [](int token) { return token % 7 == 3; }),
                   tokens.end());
      const std::vector<std::int32_t> expected = by_comparison(tokens, scores);
      sort_descending(tokens, scores);
      CAPTURE(size);
      CAPTURE(kind);
      CHECK(tokens == expected);
    }
  }
}

}  // namespace laprox::testing
