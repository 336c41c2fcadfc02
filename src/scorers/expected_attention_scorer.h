#pragma once

#include "scorers/future_queries.h"

namespace laprox {

/// Base of the methods that build on ExpectedAttention's score (kvpress): the attention that a Gaussian guess of the
/// coming queries pays, times the value's norm.
class ExpectedAttentionScorer : public FutureQueryScorer {
 public:
  /// future, sinks, covariance, value-norm, of the default `value_norm`.
  static std::vector<OptionSpec> options(bool value_norm);

 protected:
  /// As FutureQueryScorer's. `epsilon`: added to the attention before the value's norm multiplies it.
  explicit ExpectedAttentionScorer(const Options& options, double epsilon, const ScorerTraits& traits = {},
                                   Sinks sinks = Sinks::pinned);

  /// [kv_heads, C]; 0 for the sinks.
  Matrix expected_scores(const LayerView& layer, ScoringKernels& kernels) const;
  /// The same with the sinks at the largest score of the layer plus one, as kvpress protects them.
  Matrix padded_scores(const LayerView& layer, ScoringKernels& kernels) const;
  /// The second where the sinks compete, else the first.
  Matrix base_scores(const LayerView& layer, ScoringKernels& kernels) const;

 private:
  Eigen::VectorXd expected(const LayerView& layer, Index head, const Rotation& future) const;

  bool covariance_, value_norm_;
  double epsilon_;
};

}  // namespace laprox
