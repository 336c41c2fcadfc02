#include "scorers/window_scorer.h"

namespace laprox {

namespace {

/// OBCache: how far deleting an entry's key, value or both moves the head's output, to first order.
class OBCache : public WindowScorer {
 public:
  explicit OBCache(const Options& options)
      : WindowScorer(options, "obcache"), kind_(options.text("score")), group_(group_of(options)) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    Matrix scores(layer.geometry().query_heads, layer.context_length());
    kernels.visit_heads(window(), [&](Index head, const HeadAttention& attention) {
      const Matrix values = layer.values(head / layer.geometry().group());
      scores.row(head) = saliency(attention, values);
    });
    scores = reduce_groups(scores, layer.geometry().group(), group_);
    pool(scores, prefix_of(layer));
    return scores;
  }

 private:
  /// Sums over the window of A^2 ||x||^2 with x the first-order change of the output: v where the value goes, z (v - o)
  /// where the key goes, (1 + z) v - z o where both go.
  Eigen::RowVectorXd saliency(const HeadAttention& attention, const Matrix& values) const {
    const Eigen::ArrayXXd squares = attention.weights.array().square();
    const Eigen::RowVectorXd value_norms = values.rowwise().squaredNorm().transpose();
    if (kind_ == "value") return squares.colwise().sum().matrix().cwiseProduct(value_norms);
    const Eigen::ArrayXXd z = attention.logits.array();
    const Eigen::ArrayXXd products = (attention.outputs * values.transpose()).array();
    const Eigen::ArrayXXd v = value_norms.array().replicate(z.rows(), 1);
    const Eigen::ArrayXXd o = attention.outputs.rowwise().squaredNorm().array().replicate(1, z.cols());
    const Eigen::ArrayXXd of_value = kind_ == "joint" ? Eigen::ArrayXXd(1 + z) : z;
    const Eigen::ArrayXXd size = of_value.square() * v + z.square() * o;
    Eigen::ArrayXXd change = size - 2 * of_value * z * products;
    // Where little is left of the three terms, the difference itself is formed.
    for (Index i = 0; i < change.cols(); ++i) {
      for (Index t = 0; t < change.rows(); ++t) {
        if (change(t, i) > kLeft * size(t, i)) continue;
        change(t, i) = (of_value(t, i) * values.row(i) - z(t, i) * attention.outputs.row(t)).squaredNorm();
      }
    }
    return (squares * change).colwise().sum().matrix();
  }

  static constexpr double kLeft = 1e-6;

  std::string kind_;
  GroupReduction group_;
};

}  // namespace

ScorerInfo obcache_info() {
  std::vector<OptionSpec> options = WindowScorer::options(16, "max", 7);
  options.push_back(OptionSpec::choice("score", "joint", {"joint", "value", "key"}, "what is deleted"));
  options.push_back(group_option("sum"));
  return {
      .name = "obcache",
      .summary = "first-order change of the head's output when an entry's key and value are deleted",
      .paper = "OBCache, 2025, arXiv 2510.07651",
      .description =
          "value: sum_t A^2 ||v||^2; key: sum_t (A z)^2 ||v - o_t||^2; joint: sum_t A^2 ||(1 + z) v - z o_t||^2, with "
          "z the logit and o_t the head's output. Summed over the group and max-pooled over the tokens before the "
          "window. Published code keeps one set per query head; here the group's scores become one (gqa).",
      .default_allocator = "head",
      .needs = "window queries, K, V",
      .options = std::move(options),
      .make = make_scorer<OBCache>,
  };
}

}  // namespace laprox
