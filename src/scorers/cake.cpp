#include <cmath>

#include "scorers/window_scorer.h"

namespace laprox {

namespace {

/// CAKE: mean attention plus its variance over queries; layers are weighed by how spread and how shifting they attend.
class Cake : public WindowScorer {
 public:
  explicit Cake(const Options& options)
      : WindowScorer(options, "cake", {.gives_preference = true}),
        gamma_(options.real("gamma")),
        tau1_(options.real("tau1")),
        tau2_(options.real("tau2")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const Index prefix = prefix_of(layer);
    const double queries = static_cast<double>(layer.context_length() - prefix);
    Matrix scores = kernels.window_statistics(window()).sum / queries + gamma_ * variances(layer, kernels);
    pool(scores, prefix);
    return reduce_groups(scores, layer.geometry().group(), GroupReduction::mean);
  }

  /// H^(1/tau1) * V^(1/tau2): entropy of the window's attention, and its variance over queries, both summed up.
  double preference(const LayerView& layer, ScoringKernels& kernels) const override {
    const Index prefix = prefix_of(layer);
    std::vector<double> entropies(static_cast<std::size_t>(layer.geometry().query_heads));
    kernels.visit_heads(window(), [&](Index head, const HeadAttention& attention) {
      const auto a = attention.weights.leftCols(prefix).array();
      entropies[head] = -(a * (a + 1e-10).log()).sum();
    });
    double entropy = 0;
    for (double each : entropies) entropy += each;
    const double variance = variances(layer, kernels).leftCols(prefix).sum();
    return std::pow(std::max(entropy, 0.0), 1 / tau1_) * std::pow(variance, 1 / tau2_);
  }

 private:
  /// Unbiased variance of A_h[t, i] over the window's queries, [query_heads, C].
  Matrix variances(const LayerView& layer, ScoringKernels& kernels) const {
    const double queries = static_cast<double>(layer.context_length() - prefix_of(layer));
    const WindowStatistics& statistics = kernels.window_statistics(window());
    if (queries < 2) return Matrix::Zero(statistics.sum.rows(), statistics.sum.cols());
    return ((statistics.squares - statistics.sum.cwiseAbs2() / queries) / (queries - 1)).cwiseMax(0.0);
  }

  double gamma_, tau1_, tau2_;
};

}  // namespace

ScorerInfo cake_info() {
  std::vector<OptionSpec> options = WindowScorer::options(32, "avg", 5);
  options.push_back(OptionSpec::real("gamma", 200, 0, 1e9, "weight of the variance"));
  options.push_back(OptionSpec::real("tau1", 1, 0.01, 100, "temperature of the entropy in the layer's preference"));
  options.push_back(OptionSpec::real("tau2", 1, 0.01, 100, "temperature of the variance in the layer's preference"));
  return {
      .name = "cake",
      .summary = "mean attention plus its variance over queries; layers by entropy and variance",
      .paper = "CAKE, 2025, arXiv 2503.12491",
      .description =
          "s[i] = mean over the group of avg-pooled mean_t A_h[t, i] + gamma * var_t A_h[t, i] (unbiased). The "
          "layer's preference is H^(1/tau1) * V^(1/tau2), H the entropy of the window's attention on the tokens "
          "before it, V the sum of the variances. The published code has tuned temperatures per model and budget "
          "(llama-3.1-8b: 1.6 and 0.4 at 1024 tokens, 1.6 and 0.6 at 128); without an entry both are 1, the default "
          "here.",
      .default_allocator = "cake",
      .needs = "window queries, K",
      .options = std::move(options),
      .make = make_scorer<Cake>,
  };
}

}  // namespace laprox
