// LaProx-R's worked example on the fixture, computed by an independent program.

#include <doctest/doctest.h>

#include "support/golden.h"

namespace laprox::testing {

namespace {

constexpr const char* kNear = "laprox-r:window=2,sinks=1,kernel=3,over=sum,pool=avg";
constexpr const char* kFar = "laprox-r:window=2,sinks=1,kernel=3,far=2,far-weight=8";

/// The scores of the tokens that compete: behind the sink, before the window.
void check_candidates(const std::string& policy, Index layer, const std::vector<std::vector<double>>& expected) {
  for (const auto& backend : backends()) {
    CAPTURE(backend->name());
    const Matrix scores = score(policy, layer, *backend);
    for (Index head : {0, 1}) check_row(scores.middleCols(1, 3), head, expected[static_cast<std::size_t>(head)]);
  }
}

}  // namespace

TEST_CASE("energies of removal") {
  for (const auto& backend : backends()) {
    CAPTURE(backend->name());
    std::vector<Matrix> near, far;
    for (Index layer : {0, 1}) {
      const LayerTensors tensors = fixture_layer(layer, backend->element_type());
      const auto kernels = backend->scoring(tensors);
      near.push_back(kernels->removal_energies(2, OverQueries::sum, true));
      far.push_back(kernels->far_energies(2));
      // The last candidates' sums are divided by 16 queries.
      for (Index i = 0; i < 6; ++i) far.back().col(i) /= 16;
    }
    check_row(near[0], 0, {4.4098, 1.0286, 12.1597, .4928, 6.4399, .2385});
    check_row(near[0], 1, {.8629, .2106, 53.5751, 1.1606, 3.5372, .0467});
    check_row(near[1], 0, {1.3705, 4.8512, 16.6277, 1.6522, 6.2213, 5.8143});
    check_row(near[1], 1, {2.0948, 8.4097, 10.9247, 6.7098, .0593, .8154});
    check_row(far[0], 0, {1.2128, .0642, .6023, .0275, 0, 0});
    check_row(far[0], 1, {.0917, .0430, 2.7081, .0295, 0, 0});
    check_row(far[1], 0, {.3655, .3463, .9261, .0090, 0, 0});
    check_row(far[1], 1, {.4194, 1.2910, .6480, .3340, 0, 0});
  }
}

TEST_CASE("LaProx-R's scores, of the window and with distant queries") {
  check_candidates(kNear, 0, {{2.0967, 2.1355, 2.0537}, {4.2342, 4.2797, 4.2714}});
  check_candidates(kNear, 1, {{2.6757, 2.7768, 2.4685}, {2.5387, 2.9464, 2.4245}});
  check_candidates(kFar, 0, {{3.8490, 3.8490, 3.8490}, {8.6261, 8.6261, 8.6261}});
  check_candidates(kFar, 1, {{4.2798, 4.2798, 4.2798}, {3.9896, 3.9896, 3.9792}});
}

TEST_CASE("own adds an entry's own energy to the pooled one") {
  // Their squares are the pooled ones' of above plus E.
  check_candidates(std::string(kNear) + ",own=1", 0, {{2.3291, 4.0890, 2.1704}, {4.2590, 8.4789, 4.4052}});
}

TEST_CASE("LaProx-R's kept tokens, relative to the residual stream and not") {
  check_kept(kNear, {{0, 2, 4, 5}, {0, 1, 2, 3, 4, 5}, {0, 4, 5}, {0, 4, 5}});
  check_kept(std::string(kNear) + ",normalize=false", {{0, 4, 5}, {0, 1, 2, 3, 4, 5}, {0, 4, 5}, {0, 2, 4, 5}});
  check_kept(kFar, {{0, 1, 4, 5}, {0, 1, 2, 3, 4, 5}, {0, 4, 5}, {0, 4, 5}});
  check_kept("laprox-far:window=2,sinks=1,kernel=3,far=2", {{0, 1, 4, 5}, {0, 1, 2, 3, 4, 5}, {0, 4, 5}, {0, 4, 5}});
}

}  // namespace laprox::testing
