#include <cmath>
#include <optional>

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
      scores.row(head) = changes(attention, values, sink_of(layer, head));
    });
    if (pool_first_) pool(scores, prefix);
    scores = reduce_groups(scores, layer.geometry().group(), GroupReduction::mean);
    if (!pool_first_) pool(scores, prefix);
    return scores;
  }

 private:
  static std::optional<double> sink_of(const LayerView& layer, Index head) {
    const auto& sinks = layer.attention().sinks;
    if (sinks.empty()) return std::nullopt;
    return sinks[head];
  }

  /// sum_t (p / (1 - p + epsilon))^2 ||o_t - v_i||^2 of every token.
  Eigen::RowVectorXd changes(const HeadAttention& attention, const Matrix& values, std::optional<double> sink) const {
    Eigen::RowVectorXd sums = Eigen::RowVectorXd::Zero(values.rows());
    Matrix weights = attention.weights;
    for (Index t = 0; t < weights.rows(); ++t) {
      Index top;
      if (weights.row(t).maxCoeff(&top) < 0.5) continue;
      sums[top] += change_without(top, attention, t, values, sink);
      weights(t, top) = 0;
    }
    for (Index i = 0; i < sums.size(); ++i) {
      const Eigen::ArrayXd p = weights.col(i);
      const Eigen::ArrayXd distance = (attention.outputs.rowwise() - values.row(i)).rowwise().squaredNorm();
      sums[i] += ((p / (1 - p + epsilon_)).square() * distance).sum();
    }
    return sums;
  }

  /// The same of the token that has most of a query's weight. There 1 - p and o - v are small differences of numbers
  /// that a backend rounds, so both are summed from the other tokens, with weights e_j = exp(z_j - z_top):
  /// p = 1 / (1 + sum e_j) and o - v = p sum e_j (v_j - v), a sink's value being 0.
  double change_without(Index top, const HeadAttention& attention, Index t, const Matrix& values,
                        std::optional<double> sink) const {
    const double most = attention.logits(t, top);
    double rest = sink ? std::exp(*sink - most) : 0;
    Eigen::RowVectorXd away = -rest * values.row(top);
    for (Index j = 0; j < values.rows(); ++j) {
      if (j == top || attention.weights(t, j) == 0) continue;
      const double e = std::exp(attention.logits(t, j) - most);
      rest += e;
      away += e * (values.row(j) - values.row(top));
    }
    const double p = 1 / (1 + rest), factor = p / (rest * p + epsilon_);
    return factor * factor * p * p * away.squaredNorm();
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
          "i]; max-pooled over the tokens before the window. A MAX kernel of 11 makes most cuts ties.",
      .default_allocator = "head",
      .needs = "window queries, K, V",
      .options = std::move(options),
      .make = make_scorer<DropKV>,
  };
}

}  // namespace laprox
