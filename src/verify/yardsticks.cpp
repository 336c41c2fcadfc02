#include "verify/yardsticks.h"

#include <algorithm>

#include "laprox/scores.h"
#include "verify/weight_error.h"

namespace laprox::verify {

double Yardsticks::weight_error(QueryNeed::Kind needs, const Precision& precision) {
  if (needs == QueryNeed::Kind::none) return 0;
  const auto [entry, is_new] = weight_errors_.try_emplace(precision.type());
  if (is_new) entry->second = verify::weight_error(layer_, precision, threads_);
  return entry->second;
}

LayerScores Yardsticks::expected_scores(const Policy& policy, const std::vector<Index>& budgets) {
  return expected(
      [&](const LayerView& view, ScoringKernels& kernels) { return score_layer(policy, budgets, view, kernels); });
}

std::vector<std::optional<LayerScores>> Yardsticks::plain_scores(const Policy& policy,
                                                                 const std::vector<Index>& budgets,
                                                                 const Precision& precision) {
  return plain(precision, [&](const LayerView& view, ScoringKernels& kernels) {
    LayerScores result = score_layer(policy, budgets, view, kernels);
    for (Matrix& scores : result.scores) {
      precision.round(scores);
      check_finite(scores, view, policy.label);
    }
    return result;
  });
}

void assess_scores(const Matrix& found, const LayerScores& expected,
                   const std::vector<std::optional<LayerScores>>& plain, std::size_t order, const Policy& policy,
                   const Precision& precision, double weight_error, Index layer, ValueCheck& check) {
  const Pins pins = policy.scorer->traits().pins;
  const Index context = found.cols(), first = std::min(pins.first, context);
  Values values{.found = found, .expected = expected.scores[order], .plain = {}, .first = first};
  values.weight_error = weight_error;
  values.last = std::max(first, context - std::min(pins.last, context));
  for (const auto& each : plain) {
    if (each) values.plain.push_back(&each->scores[order]);
  }
  assess_values(values, precision, layer, check);
}

bool jumps_elsewhere(const LayerScores& expected, const std::vector<std::optional<LayerScores>>& plain,
                     std::size_t order) {
  const Matrix& scores = expected.scores[order];
  if (std::none_of(plain.begin(), plain.end(), [](const auto& each) { return each.has_value(); })) return true;
  return std::any_of(plain.begin(), plain.end(), [&](const std::optional<LayerScores>& each) {
    if (!each) return false;
    const Eigen::ArrayXd errors = (each->scores[order] - scores).cwiseAbs().rowwise().maxCoeff().array();
    return (errors > kCap * scores.cwiseAbs().rowwise().maxCoeff().array()).any();
  });
}

void assess_output(const Backend& reference, const LayerTensors& layer, const Matrix& found, const Precision& precision,
                   int threads, ValueCheck& check) {
  const Matrix expected = reference.layer_errors(layer, {}, SoftmaxMode::renormalized).exact.output;
  const LayerTensors rounded = round_layer(layer, precision);
  std::vector<Matrix> plain;
  for (const Program& program : kPrograms) plain.push_back(plain_output(rounded, precision, program, threads));
  Values values{
      .found = found, .expected = expected, .plain = {}, .rows_per_head = 0, .positions = layer.query_positions};
  values.weight_error = weight_error(layer, precision, threads);
  for (const Matrix& each : plain) {
    if (each.allFinite()) values.plain.push_back(&each);
  }
  assess_values(values, precision, layer.layer, check);
}

}  // namespace laprox::verify
