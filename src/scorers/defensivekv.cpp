#include <algorithm>

#include "scorers/window_scorer.h"

namespace laprox {

namespace {

/// DefensiveKV: the worst case over heads and queries, weighed by the projected values.
class DefensiveKV : public WindowScorer {
 public:
  explicit DefensiveKV(const Options& options)
      : WindowScorer(options, "defensivekv", {.depends_on_budget = true, .scores_jump = true},
                     options.boolean("hard-window") ? WindowTokens::pinned : WindowTokens::compete),
        mass_(options.real("mass")),
        bias_from_window_(options.text("bias") == "window") {}

  std::vector<Matrix> score_each(std::span<const Index> budgets, const LayerView& layer,
                                 ScoringKernels& kernels) const override {
    const Index context = layer.context_length(), prefix = prefix_of(layer), kept_window = context - prefix;
    Matrix base = worst_case(layer, kernels);
    base.leftCols(prefix).array() *= value_shares(layer, kernels).leftCols(prefix).array();
    const double most = prefix > 0 ? base.leftCols(prefix).maxCoeff() : 0;
    base.rightCols(kept_window).setConstant(most);
    const std::vector<Ranking> dominant = dominant_tokens(layer, kernels);
    std::vector<Matrix> scores;
    for (Index tokens : budgets) {
      const Index cap = std::max<Index>(0, prefix * tokens / context - kept_window);
      Matrix& marked = scores.emplace_back(base);
      for (Index head = 0; head < base.rows(); ++head) {
        const Ranking& first = dominant[head];
        const Index count = std::min(cap, static_cast<Index>(first.size()));
        for (Index n = 0; n < count; ++n) marked(head, first[n]) = most;
      }
    }
    return scores;
  }

 private:
  /// Rows of attention, pooled and rescaled to their old sum; the largest over queries and the group; at least the
  /// head's mean.
  Matrix worst_case(const LayerView& layer, ScoringKernels& kernels) const {
    const Index prefix = prefix_of(layer);
    Matrix most = Matrix::Zero(layer.geometry().query_heads, layer.context_length());
    kernels.visit_heads(window(), [&](Index head, const HeadAttention& attention) {
      Matrix pooled = attention.weights.leftCols(prefix);
      pool(pooled, prefix);
      for (Index t = 0; t < pooled.rows(); ++t) {
        const double sum = pooled.row(t).sum();
        if (sum > 0) pooled.row(t) *= attention.weights.row(t).head(prefix).sum() / sum;
      }
      if (prefix > 0) most.row(head).head(prefix) = pooled.colwise().maxCoeff();
    });
    Matrix worst = reduce_groups(most, layer.geometry().group(), GroupReduction::maximum);
    for (Index head = 0; head < worst.rows() && prefix > 0; ++head) {
      auto row = worst.row(head).head(prefix);
      row = row.cwiseMax(row.mean()).eval();
    }
    return worst;
  }

  /// N_g[i] / sum over KV heads of N[i], N = mean over the group of ||v_i W_O^h||_1.
  Matrix value_shares(const LayerView& layer, ScoringKernels& kernels) const {
    Matrix norms = reduce_groups(kernels.value_l1_norms(), layer.geometry().group(), GroupReduction::mean);
    const Eigen::RowVectorXd sums = norms.colwise().sum();
    for (Index i = 0; i < norms.cols(); ++i) {
      if (sums[i] > 0) norms.col(i) /= sums[i];
    }
    return norms;
  }

  /// Per head the tokens, best first, whose mean attention adds up to just below the threshold.
  std::vector<Ranking> dominant_tokens(const LayerView& layer, ScoringKernels& kernels) const {
    const Index prefix = prefix_of(layer), queries = layer.context_length() - prefix;
    const Matrix attention = kernels.window_statistics(window()).sum / static_cast<double>(queries);
    const Index first = bias_from_window_ ? prefix : std::max<Index>(0, prefix - queries);
    const Index last = bias_from_window_ ? layer.context_length() : prefix;
    const double bias = attention.middleCols(first, last - first).rowwise().sum().mean();
    const Matrix mean = reduce_groups(attention, layer.geometry().group(), GroupReduction::mean);
    std::vector<Ranking> dominant;
    for (Index head = 0; head < mean.rows(); ++head) {
      Ranking& tokens = dominant.emplace_back(rank_by_score({&mean(head, 0), static_cast<std::size_t>(prefix)}, {}));
      const double whole = mean.row(head).head(prefix).sum();
      double sum = 0;
      std::size_t count = 0;
      while (count < tokens.size() && whole > 0 && (sum += mean(head, tokens[count]) / whole) < mass_ - bias) ++count;
      tokens.resize(count);
    }
    return dominant;
  }

  double mass_;
  bool bias_from_window_;
};

}  // namespace

ScorerInfo defensivekv_info() {
  std::vector<OptionSpec> options = WindowScorer::options(32, "avg", 5);
  options.push_back(
      OptionSpec::real("mass", 0.9, 0, 1, "attention that the tokens kept first add up to, less the bias"));
  options.push_back(OptionSpec::choice("bias", "code", {"code", "window"}, "where the bias is measured"));
  options.push_back(OptionSpec::boolean("hard-window", true, "keep the window whatever the other scores"));
  return {
      .name = "defensivekv",
      .summary = "largest pooled attention of any head and query, weighed by projected value norms",
      .paper = "DefensiveKV, 2025, arXiv 2510.13334",
      .description =
          "Each query's attention row is average-pooled and rescaled to its sum; the maximum over queries and the "
          "group, at least the head's mean, times N_g[i] / sum over heads of N[i], N = mean over the group of ||v_i "
          "W_O^h||_1. The tokens whose mean attention adds up to mass - bias, at most int(P * b / C) - window of "
          "them, score the layer's maximum. bias=code is the attention on the last `window` tokens before the window, "
          "as the published code measures it; bias=window the one on the window itself. layer-defensivekv compares "
          "raw scores over the model, where, as published, a window competes at its own layer's maximum.",
      .default_allocator = "layer",
      .needs = "window queries, K, V, W_o",
      .options = std::move(options),
      .make = make_scorer<DefensiveKV>,
  };
}

}  // namespace laprox
