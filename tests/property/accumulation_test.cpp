// Long sums in float32 keep what many small terms beside a large one amount to.

#include <doctest/doctest.h>

#include <cmath>

#include "support/layers.h"

namespace laprox::testing {

namespace {

/// One key draws nearly all attention; each of the thousands of others has a weight below half the spacing of float32
/// at 1.
LayerTensors peaked_layer() {
  LayerTensors layer = random_layer({.geometry = {2, 1, 4, 4, 8}, .context = 6000, .decoded = 4}, 5);
  layer.attention.scale = 1;
  std::fill_n(layer.q.data<double>(), layer.q.size(), 1.0);
  std::fill_n(layer.k.data<double>(), layer.k.size(), 0.0);
  layer.k.data<double>()[0] = 17;
  return layer;
}

Matrix weights_of(const Backend& backend, const LayerTensors& layer) {
  Matrix weights(layer.geometry.query_heads * 8, layer.context_length);
  backend.scoring(layer)->visit_heads(
      8, [&](Index head, const HeadAttention& attention) { weights.middleRows(head * 8, 8) = attention.weights; });
  return weights;
}

}  // namespace

TEST_CASE("many small weights beside a large one add up in the softmax") {
  const LayerTensors whole = peaked_layer();
  const auto reference = make_reference_backend(), cpu = make_cpu_backend();
  const LayerTensors exact = with_queries(whole, 5992, 6000, ElementType::float64);
  const LayerTensors fast = with_queries(whole, 5992, 6000, ElementType::float32);
  const double lost = 5999 * std::exp(-17.0);
  CHECK(lost > 1e-4);  // what a single chain of additions would lose

  const Matrix expected = weights_of(*reference, exact), found = weights_of(*cpu, fast);
  CHECK((found - expected).cwiseAbs().maxCoeff() < 2e-6);
  const WindowStatistics right = reference->scoring(exact)->window_statistics(8);
  const WindowStatistics fast_statistics = cpu->scoring(fast)->window_statistics(8);
  CHECK((fast_statistics.sum - right.sum).cwiseAbs().maxCoeff() < 8 * 2e-6);
}

}  // namespace laprox::testing
