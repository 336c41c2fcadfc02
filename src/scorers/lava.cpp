#include "scorers/window_scorer.h"

namespace laprox {

namespace {

/// LAVa: max-pooled mean attention, scaled by the head's largest value.
class Lava : public WindowScorer {
 public:
  explicit Lava(const Options& options) : WindowScorer(options, "lava") {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const Index prefix = prefix_of(layer);
    Matrix attention = kernels.window_statistics(window()).sum / static_cast<double>(layer.context_length() - prefix);
    pool(attention, prefix);
    Matrix scores = reduce_groups(attention, layer.geometry().group(), GroupReduction::maximum);
    for (Index head = 0; head < scores.rows() && prefix > 0; ++head) {
      scores.row(head) *= layer.values(head).topRows(prefix).cwiseAbs().rowwise().sum().maxCoeff();
    }
    return scores;
  }
};

}  // namespace

ScorerInfo lava_info() {
  return {
      .name = "lava",
      .summary = "max-pooled attention of the window times the head's largest value norm",
      .paper = "LAVa, 2025, arXiv 2509.09754",
      .description =
          "s[i] = max over the group of max-pooled mean_t A_h[t, i], times max over the tokens before the window of "
          "||v_i||_1. The constant matters where heads compete. With the allocator lava (the default) layers share "
          "the budget by the entropy of their scores, heads as in AdaKV.",
      .default_allocator = "lava",
      .needs = "window queries, K, V",
      .options = WindowScorer::options(32, "max", 7),
      .make = make_scorer<Lava>,
  };
}

}  // namespace laprox
