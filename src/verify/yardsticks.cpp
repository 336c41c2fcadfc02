#include "verify/yardsticks.h"

#include <algorithm>

#include "laprox/scores.h"

namespace laprox::verify {

LayerScores Yardsticks::expected_scores(const Policy& policy, const std::vector<Index>& budgets) {
  return expected([&](const LayerView& view, ScoringKernels& kernels) {
    return score_layer(policy, budgets, view, kernels);
  });
}

std::optional<LayerScores> Yardsticks::plain_scores(const Policy& policy, const std::vector<Index>& budgets,
                                                    const Precision& precision) {
  return plain(precision, [&](const LayerView& view, ScoringKernels& kernels) {
    LayerScores result = score_layer(policy, budgets, view, kernels);
    for (Matrix& scores : result.scores) {
      precision.round(scores);
      check_finite(scores, view.layer(), policy.label);
    }
    return result;
  });
}

Values score_values(const Matrix& found, const Matrix& expected, const Matrix* plain, const Policy& policy) {
  const Pins pins = policy.scorer->pins();
  const Index context = expected.cols(), first = std::min(pins.first, context);
  return {.found = found,
          .expected = expected,
          .plain = plain,
          .first = first,
          .last = std::max(first, context - std::min(pins.last, context))};
}

void judge_output(const Backend& reference, const LayerTensors& layer, const Matrix& found, const Precision& precision,
                  ValueCheck& check) {
  const Matrix expected = reference.evaluate(layer, {}, SoftmaxMode::renormalized).exact.output;
  const Matrix plain = plain_output(round_layer(layer, precision), precision);
  judge_values({.found = found,
                .expected = expected,
                .plain = plain.allFinite() ? &plain : nullptr,
                .positions = layer.query_positions},
               precision, layer.layer, check);
}

}  // namespace laprox::verify
