#include "base/parallel.h"
#include "scorers/future_queries.h"
#include "scorers/groups.h"

namespace laprox {

namespace {

/// ExpectedAttention: the attention that a Gaussian guess of the coming queries pays.
class ExpectedAttention : public FutureQueryScorer {
 public:
  explicit ExpectedAttention(const Options& options)
      : FutureQueryScorer(options),
        covariance_(options.boolean("covariance")),
        value_norm_(options.boolean("value-norm")),
        epsilon_(options.real("epsilon")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
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

 private:
  /// softmax_i(E exp(scale <q, k_i>)) for q normal with the queries' mean and covariance, moved to the coming
  /// positions.
  Eigen::VectorXd expected(const LayerView& layer, Index head, const Rotation& future) const {
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

  bool covariance_, value_norm_;
  double epsilon_;
};

}  // namespace

ScorerInfo expected_attention_info() {
  std::vector<OptionSpec> options = FutureQueryScorer::options();
  options.push_back(OptionSpec::boolean("covariance", true, "use the queries' covariance, not only their mean"));
  options.push_back(OptionSpec::boolean("value-norm", true, "multiply by ||v_i||_2"));
  options.push_back(
      OptionSpec::real("epsilon", 0, 0, 1, "added to the attention before the value's norm multiplies it"));
  return {
      .name = "expected-attention",
      .summary = "attention expected from coming queries, guessed as a Gaussian of the prompt's, times the value norm",
      .paper = "ExpectedAttention, 2025, kvpress",
      .description =
          "The prompt's queries behind the sinks, before RoPE, have mean mu and covariance S (divided by their "
          "number). R is the mean of RoPE's rotations over the next `future` positions. s[i] = (p[i] + epsilon) * "
          "||v_i||_2 with p = softmax over i of scale * <R mu, k_i> + scale^2 / 2 * k_i R S R^T k_i, meaned over the "
          "group; the sinks are kept. The registry of kvpress wraps it in AdaKV with epsilon 0.01: "
          "expected-attention+ada:variant=kvpress,epsilon=0.01. The variant with statistics of other texts needs a "
          "file that a dump does not hold.",
      .default_allocator = "head",
      .needs = "all prompt queries before RoPE, K, V",
      .options = std::move(options),
      .make = make_scorer<ExpectedAttention>,
  };
}

}  // namespace laprox
