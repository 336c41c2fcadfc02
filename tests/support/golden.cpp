#include "support/golden.h"

#include <doctest/doctest.h>

#include "replay/selection.h"

namespace laprox::testing {

std::vector<LayerTensors> fixture(const Backend& backend) {
  std::vector<LayerTensors> layers;
  for (Index layer : {0, 1}) layers.push_back(fixture_layer(layer, backend.element_type()));
  return layers;
}

Matrix score(const std::string& text, Index layer, const Backend& backend, Index budget) {
  const LayerTensors tensors = fixture_layer(layer, backend.element_type());
  const Policy policy = parse_policy(text);
  return layer_scores(*policy.scorer, text, {&budget, 1}, LayerView(tensors), *backend.scoring(tensors)).at(0);
}

void check_row(const Matrix& scores, Index row, const std::vector<double>& expected) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    INFO("token " << i);
    // Four decimals, and rounding of the float32 backend in the largest of them.
    CHECK(scores(row, static_cast<Index>(i)) == doctest::Approx(expected[i]).scale(1).epsilon(6e-5));
  }
}

void check_kept(const std::string& policy, const std::vector<Tokens>& expected, Index budget) {
  for (const auto& backend : backends()) {
    CAPTURE(policy);
    CAPTURE(backend->name());
    const Kept kept = keep(parse_policy(policy), fixture(*backend), {budget}, *backend);
    for (std::size_t head = 0; head < expected.size(); ++head) {
      CAPTURE(head);
      CHECK(kept.tokens(0, head / 2, head % 2) == expected[head]);
    }
  }
}

}  // namespace laprox::testing
