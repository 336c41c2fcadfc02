#include <algorithm>
#include <cmath>

#include "laprox/error.h"
#include "scorers/window_scorer.h"

namespace laprox {

namespace {

/// LaProx: the Frobenius norm of the rank-one term ||A_h[:, i]|| * ||v_i W_O^h|| that an entry adds to the layer's
/// output.
class LaProx : public WindowScorer {
 public:
  explicit LaProx(const Options& options)
      : WindowScorer(options, "laprox", {.pins = {.first = options.integer("sinks")}}),
        stage_(options.text("pool-stage")),
        gqa_(options.text("gqa")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const Index prefix = prefix_of(layer);
    Matrix scores = gqa_ == "frobenius" ? frobenius(layer, kernels) : product(layer, kernels, prefix);
    if (stage_ == "final") pool(scores, prefix);
    return scores;
  }

 private:
  /// An attention factor times a value factor, the three readings of how a group of query heads becomes one entry.
  Matrix product(const LayerView& layer, ScoringKernels& kernels, Index prefix) const {
    const Index group = layer.geometry().group();
    Matrix attention = gqa_ == "mean-attn" ? norm_of_mean(layer, kernels)
                                           : kernels.window_statistics(window()).squares.cwiseSqrt().eval();
    if (stage_ == "attn") pool(attention, prefix);
    const Matrix& values = kernels.value_norms();
    if (gqa_ == "mean-product") return reduce_groups(attention.cwiseProduct(values), group, GroupReduction::mean);
    if (gqa_ == "mean-norms") attention = reduce_groups(attention, group, GroupReduction::mean);
    return attention.cwiseProduct(reduce_groups(values, group, GroupReduction::mean));
  }

  /// || mean_h A_h[:, i] ||_2 per KV head.
  Matrix norm_of_mean(const LayerView& layer, ScoringKernels& kernels) const {
    const Index group = layer.geometry().group();
    const Matrix sums = reduce_groups(kernels.window_products(window()), group * group, GroupReduction::mean);
    return sums.cwiseMax(0.0).cwiseSqrt();
  }

  /// || sum_h A_h[:, i] (x) v_i W_O^h ||_F per KV head: the exact contribution of an entry that a whole group reads.
  Matrix frobenius(const LayerView& layer, ScoringKernels& kernels) const {
    const Index group = layer.geometry().group();
    const Matrix terms = kernels.window_products(window()).cwiseProduct(kernels.value_products());
    return reduce_groups(terms, group * group, GroupReduction::sum).cwiseMax(0.0).cwiseSqrt();
  }

  std::string stage_, gqa_;
};

std::unique_ptr<Scorer> make_laprox(Options& options) {
  if (options.text("gqa") == "frobenius" && options.text("pool-stage") == "attn") {
    if (options.given("pool-stage")) {
      throw UsageError(
          "laprox: gqa=frobenius has no attention factor of its own to pool; use pool-stage=final or pool-stage=none");
    }
    options.settle("pool-stage", "final");
  }
  return make_scorer<LaProx>(options);
}

}  // namespace

ScorerInfo laprox_info() {
  std::vector<OptionSpec> options = WindowScorer::options(32, "avg", 7);
  options.insert(options.begin() + 1,
                 OptionSpec::choice("gqa", "mean-product", {"mean-product", "mean-norms", "mean-attn", "frobenius"},
                                    "how the query heads that share a KV head become one score"));
  options.push_back(OptionSpec::integer("sinks", 0, 0, 1 << 20, "first tokens that are always kept, and not pooled"));
  options.push_back(OptionSpec::choice("pool-stage", "attn", {"attn", "final", "none"},
                                       "pool the attention factor, the final score, or nothing"));
  return {
      .name = "laprox",
      .summary = "norm of the entry's term in the layer's output, ||A[:, i]|| * ||v_i W_O||, over the whole model",
      .paper = "LaProx (Mai and Kim), 2026, arXiv 2605.07234",
      .description =
          "p_h[i] = ||A_h[:, i]||_2 * ||v_i W_O^h||_2 with A_h the attention of the last `window` prompt queries "
          "(Algorithm 1). With the allocator global (the default) each layer's scores are divided by their sum and "
          "one top-K serves the model (Algorithm 2); laprox+layer and laprox+head are the narrower scopes. No code "
          "was published; what the text leaves open is an option: gqa=mean-product averages the query heads' "
          "products, mean-norms multiplies the means of both factors, mean-attn takes the norm of the mean attention, "
          "frobenius is the exact norm of the group's joint term. Pooling follows SnapKV's place: on the attention "
          "factor, over the tokens before the window. sinks=n (not in the paper) keeps the first n tokens, which the score "
          "alone evicts from real models at small budgets.",
      .default_allocator = "global",
      .needs = "window queries, K, V, W_o",
      .options = std::move(options),
      .make = make_laprox,
  };
}

}  // namespace laprox
