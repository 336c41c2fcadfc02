#include "scorers/snapkv_scorer.h"
#include "scorers/two_stage.h"

namespace laprox {

namespace {

/// CriticalKV: half of the budget by attention, the rest by attention times the norm of the projected value.
class CriticalKV : public SnapKVScorer {
 public:
  explicit CriticalKV(const Options& options)
      : SnapKVScorer(options, "criticalkv", {.scores_are_places = true},
                     options.text("variant") == "hard-window" ? WindowTokens::pinned : WindowTokens::compete),
        stages_(TwoStages::of(options, options.text("variant") == "kvpress-0.5.5")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    return stages_.places(stages_.scores(base_scores(layer, kernels), layer.geometry().group(), kernels),
                          traits().pins);
  }

 private:
  TwoStages stages_;
};

}  // namespace

ScorerInfo criticalkv_info() {
  std::vector<OptionSpec> options = SnapKVScorer::options("max", 7);
  TwoStages::add_options(options, false);
  options.push_back(OptionSpec::choice("variant", "hard-window", {"hard-window", "kvpress", "kvpress-0.5.5"},
                                       "how the window is protected"));
  return {
      .name = "criticalkv",
      .summary = "SnapKV's attention first, then attention times the L1 norm of the projected value",
      .paper = "CriticalKV, 2025, arXiv 2502.03805",
      .description =
          "s is SnapKV's score and s' = (s + epsilon) * mean over the group of ||v_i W_O^h||_1. Half of the budget "
          "goes to the best tokens by s, the rest to the best others by s'. By default the window is kept and both "
          "stages share what is left. variant=kvpress reproduces the published code: the window competes at the "
          "largest score plus one in the first stage and at that times its value norm in the second, where it can "
          "lose; in variant=kvpress-0.5.5, which is kvpress from that version on, the first stage picks at least one "
          "token unless first-stage=0.",
      .default_allocator = "head",
      .needs = "window queries, K, V, W_o",
      .only_allocator = "head",
      .options = std::move(options),
      .make = make_scorer<CriticalKV>,
  };
}

}  // namespace laprox
