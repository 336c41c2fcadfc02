#include <Eigen/Cholesky>

#include "base/parallel.h"
#include "scorers/future_queries.h"
#include "scorers/groups.h"

namespace laprox {

namespace {

/// CapKV: values that span what the others do not, weighed by how much their keys resemble the coming queries.
class CapKV : public FutureQueryScorer {
 public:
  explicit CapKV(const Options& options) : FutureQueryScorer(options), tau_(options.real("tau")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const LayerGeometry& g = layer.geometry();
    Matrix scores = Matrix::Zero(g.query_heads, layer.context_length());
    if (layer.context_length() > sinks()) {
      const Rotation future = future_rotation(layer);
      parallel_for(kernels.threads(), g.query_heads, [&](Index head) {
        scores.row(head).tail(layer.context_length() - sinks()) = leverage(layer, head, future).transpose();
      });
    }
    return reduce_groups(scores, g.group(), GroupReduction::mean);
  }

 private:
  /// w_i v_i^T M^-1 v_i with w_i = exp(tau cos(q, k_i)) over its largest, and M = I + sum_i (w_i + 1e-6) v_i v_i^T.
  Eigen::VectorXd leverage(const LayerView& layer, Index head, const Rotation& future) const {
    const Index kv_head = head / layer.geometry().group(), count = layer.context_length() - sinks();
    const Matrix keys = layer.keys(kv_head).bottomRows(count), values = layer.values(kv_head).bottomRows(count);
    Matrix query = plain_queries(layer, head).colwise().mean();
    rotate_rows(query, future);
    const Eigen::ArrayXd lengths = (keys.rowwise().norm() * query.norm()).array().max(1e-12);
    const Eigen::ArrayXd cosines = ((keys * query.transpose()).array() / lengths).max(-1.0).min(1.0);
    const Eigen::ArrayXd weights = (tau_ * (cosines - cosines.maxCoeff())).exp();
    Matrix gram = values.transpose() * (weights + 1e-6).matrix().asDiagonal() * values;
    gram.diagonal().array() += 1;
    const Eigen::LLT<Eigen::MatrixXd> factor(gram);
    const Eigen::MatrixXd solved = factor.matrixL().solve(values.transpose().eval());
    return weights * solved.colwise().squaredNorm().transpose().array();
  }

  double tau_;
};

}  // namespace

ScorerInfo capkv_info() {
  std::vector<OptionSpec> options = FutureQueryScorer::options();
  options.push_back(OptionSpec::real("tau", 5, 0, 1e3, "sharpness of the key's weight"));
  return {
      .name = "capkv",
      .summary = "leverage of the value among values weighed by their keys' similarity to the coming queries",
      .paper = "CapKV, 2026, arXiv 2604.25975",
      .description =
          "With q the mean of the prompt's queries before RoPE, moved to the next `future` positions: w_i = exp(tau * "
          "cos(q, k_i)), scaled to a maximum of 1; M = I + sum (w_i + 1e-6) v_i v_i^T; s[i] = mean over the group of "
          "w_i v_i^T M^-1 v_i; the sinks are kept. As in kvpress; the paper uses the plain product <q, k_i> instead "
          "of the cosine, and no averaged rotation.",
      .default_allocator = "head",
      .needs = "all prompt queries before RoPE, K, V",
      .options = std::move(options),
      .make = make_scorer<CapKV>,
  };
}

}  // namespace laprox
