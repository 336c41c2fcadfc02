#include "scorers/snapkv_scorer.h"
#include "scorers/two_stage.h"

namespace laprox {

namespace {

/// CriticalAdaKV: AdaKV's head budgets, filled in CriticalKV's two stages.
class CriticalAdaKV : public SnapKVScorer {
 public:
  explicit CriticalAdaKV(const Options& options)
      : SnapKVScorer(options, "criticaladakv", {.depends_on_budget = true, .scores_are_places = true},
                     options.boolean("hard-window") ? WindowTokens::pinned : WindowTokens::compete),
        stages_(TwoStages::of(options, options.text("variant") == "kvpress-0.5.5")),
        safeguard_(options.real("safeguard")) {}

  std::vector<Matrix> score_each(std::span<const Index> budgets, const LayerView& layer,
                                 ScoringKernels& kernels) const override {
    const CriticalScores scores = stages_.scores(base_scores(layer, kernels), layer.geometry().group(), kernels);
    return stages_.marks(scores, traits().pins, budgets, safeguard_);
  }

 private:
  TwoStages stages_;
  double safeguard_;
};

}  // namespace

ScorerInfo criticaladakv_info() {
  std::vector<OptionSpec> options = SnapKVScorer::options("max", 7);
  TwoStages::add_options(options, true);
  options.push_back(OptionSpec::boolean("hard-window", false, "take the window out of both stages and keep it"));
  options.push_back(OptionSpec::choice("variant", "kvpress", {"kvpress", "kvpress-0.5.5"}, "whose safeguard"));
  return {
      .name = "criticaladakv",
      .summary = "AdaKV's head budgets (kvpress form), filled in CriticalKV's two stages",
      .paper = "CriticalKV, 2025, arXiv 2502.03805",
      .description =
          "Each head is sure of n = int(b * safeguard) tokens; the layer's other entries go to the best by s. A head "
          "that won c tokens keeps its best max(n, int(c / 2)) by s and fills up by s' = (s + epsilon) * ||v_i "
          "W_O^h||_1. The window competes at the largest score plus one, as published; hard-window=true keeps it "
          "outright. variant=kvpress-0.5.5 is kvpress from that version on, where a safeguard above 0 is worth at least "
          "one token. A larger budget need not keep what a smaller one keeps.",
      .default_allocator = "layer",
      .needs = "window queries, K, V, W_o",
      .nested = false,
      .only_allocator = "layer",
      .options = std::move(options),
      .make = make_scorer<CriticalAdaKV>,
  };
}

}  // namespace laprox
