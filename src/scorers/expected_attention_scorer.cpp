#include "scorers/expected_attention_scorer.h"

#include <algorithm>

#include "base/parallel.h"
#include "scorers/groups.h"

namespace laprox {

std::vector<OptionSpec> ExpectedAttentionScorer::options(bool value_norm) {
  std::vector<OptionSpec> options = FutureQueryScorer::options();
  options.push_back(OptionSpec::boolean("covariance", true, "use the queries' covariance, not only their mean"));
  options.push_back(OptionSpec::boolean("value-norm", value_norm, "multiply by ||v_i||_2"));
  return options;
}

ExpectedAttentionScorer::ExpectedAttentionScorer(const Options& options, double epsilon, const ScorerTraits& traits,
                                                 Sinks sinks)
    : FutureQueryScorer(options, traits, sinks),
      covariance_(options.boolean("covariance")),
      value_norm_(options.boolean("value-norm")),
      epsilon_(epsilon) {}

Matrix ExpectedAttentionScorer::expected_scores(const LayerView& layer, ScoringKernels& kernels) const {
  const LayerGeometry& g = layer.geometry();
  Matrix attention = Matrix::Zero(g.query_heads, layer.context_length());
  if (layer.context_length() <= sinks()) return reduce_groups(attention, g.group(), GroupReduction::mean);
  const Rotation future = future_rotation(layer);
  parallel_for(kernels.threads(), g.query_heads, [&](Index head) {
    attention.row(head).tail(layer.context_length() - sinks()) = expected(layer, head, future).transpose();
  });
  Matrix scores = reduce_groups(attention, g.group(), GroupReduction::mean);
  for (Index head = 0; value_norm_ && head < g.kv_heads; ++head) {
    const Eigen::RowVectorXd norms = layer.values(head).rowwise().norm().transpose();
    scores.row(head) = (scores.row(head).array() + epsilon_) * norms.array();
  }
  return scores;
}

Matrix ExpectedAttentionScorer::padded_scores(const LayerView& layer, ScoringKernels& kernels) const {
  Matrix scores = expected_scores(layer, kernels);
  const Index first = std::min(sinks(), layer.context_length()), others = layer.context_length() - first;
  const double most = others > 0 ? scores.rightCols(others).maxCoeff() : 0;
  scores.leftCols(first).setConstant(most + 1);
  return scores;
}

Matrix ExpectedAttentionScorer::base_scores(const LayerView& layer, ScoringKernels& kernels) const {
  return traits().pins.first > 0 ? expected_scores(layer, kernels) : padded_scores(layer, kernels);
}

/// softmax_i(E exp(scale <q, k_i>)) for q normal with the queries' mean and covariance, moved to the coming positions.
Eigen::VectorXd ExpectedAttentionScorer::expected(const LayerView& layer, Index head, const Rotation& future) const {
  const Matrix queries = plain_queries(layer, head);
  const Matrix keys = layer.keys(head / layer.geometry().group()).bottomRows(layer.context_length() - sinks());
  const double scale = layer.attention().scale;
  Matrix mean = queries.colwise().mean();
  const Matrix centred = queries.rowwise() - mean.row(0);
  rotate_rows(mean, future);
  Eigen::VectorXd logits = scale * (keys * mean.transpose());
  if (covariance_) {
    Matrix covariance = centred.transpose() * centred / static_cast<double>(queries.rows());
    rotate_rows(covariance, future);
    covariance.transposeInPlace();
    rotate_rows(covariance, future);
    logits += scale * scale / 2 * (keys * covariance).cwiseProduct(keys).rowwise().sum();
  }
  const Eigen::VectorXd weights = (logits.array() - logits.maxCoeff()).exp();
  return weights / weights.sum();
}

}  // namespace laprox
