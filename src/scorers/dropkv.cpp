#include <cmath>

#include "scorers/window_scorer.h"

namespace laprox {

namespace {

/// DropKV: the squared change of the head's output when one entry is dropped and the softmax renormalised.
class DropKV : public WindowScorer {
 public:
  explicit DropKV(const Options& options)
      : WindowScorer(options, "dropkv"),
        epsilon_(options.real("epsilon")),
        pool_first_(options.text("order") == "pool-first") {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const Index prefix = prefix_of(layer);
    Matrix scores(layer.geometry().query_heads, layer.context_length());
    kernels.visit_heads(window(), [&](Index head, const HeadAttention& attention) {
      const Matrix values = layer.values(head / layer.geometry().group());
      const Matrix others = weights_of_others(layer, head, attention);
      for (Index i = 0; i < scores.cols(); ++i) {
        // o - v is formed as it stands: where p is near 1, v is near o, and the factor is huge.
        const Eigen::ArrayXd distance = (attention.outputs.rowwise() - values.row(i)).rowwise().squaredNorm();
        const Eigen::ArrayXd p = attention.weights.col(i);
        scores(head, i) = ((p / (others.col(i).array() + epsilon_)).square() * distance).sum();
      }
    });
    if (pool_first_) pool(scores, prefix);
    scores = reduce_groups(scores, layer.geometry().group(), GroupReduction::mean);
    if (!pool_first_) pool(scores, prefix);
    return scores;
  }

 private:
  /// 1 - A_h[t, i]. Of a weight near 1 in float32 that difference has few digits left, so it is summed from the others.
  static Matrix weights_of_others(const LayerView& layer, Index head, const HeadAttention& attention) {
    Matrix others = 1 - attention.weights.array();
    for (Index t = 0; t < others.rows(); ++t) {
      Index largest;
      if (attention.weights.row(t).maxCoeff(&largest) < 0.5) continue;
      const double top = attention.logits(t, largest);
      const auto& sinks = layer.attention().sinks;
      double rest = sinks.empty() ? 0 : std::exp(sinks[static_cast<std::size_t>(head)] - top);
      for (Index i = 0; i < others.cols(); ++i) {
        if (i != largest && attention.weights(t, i) > 0) rest += std::exp(attention.logits(t, i) - top);
      }
      others(t, largest) = rest / (1 + rest);
    }
    return others;
  }

  double epsilon_;
  bool pool_first_;
};

}  // namespace

ScorerInfo dropkv_info() {
  std::vector<OptionSpec> options = WindowScorer::options(8, "max", 11);
  options.push_back(OptionSpec::real("epsilon", 1e-6, 0, 1, "added to 1 - p"));
  options.push_back(OptionSpec::choice("order", "reduce-first", {"reduce-first", "pool-first"},
                                       "whether query heads are reduced before pooling or after"));
  return {
      .name = "dropkv",
      .summary = "exact change of the head's output when one entry is dropped and the softmax renormalised",
      .paper = "DropKV, 2025 (formula only; no code)",
      .description =
          "s[i] = mean over the group of sum over the window of (p / (1 - p + epsilon))^2 ||o_t - v_i||^2, p = A_h[t, "
          "i]; "
          "max-pooled over the tokens before the window. A MAX kernel of 11 makes most cuts ties.",
      .default_allocator = "head",
      .needs = "window queries, K, V",
      .options = std::move(options),
      .make = [](Options& chosen) -> std::unique_ptr<Scorer> { return std::make_unique<DropKV>(chosen); },
  };
}

}  // namespace laprox
