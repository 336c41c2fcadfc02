#include "scorers/expected_attention_scorer.h"
#include "scorers/two_stage.h"

namespace laprox {

namespace {

/// CriticalAdaKV over ExpectedAttention in the place of SnapKV.
class CriticalAdaExpectedAttention : public ExpectedAttentionScorer {
 public:
  explicit CriticalAdaExpectedAttention(const Options& options)
      : ExpectedAttentionScorer(options, 0, {.depends_on_budget = true, .scores_are_places = true},
                                options.boolean("hard-sinks") ? Sinks::pinned : Sinks::compete),
        stages_(TwoStages::of(options, true)),
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

ScorerInfo criticalada_expected_attention_info() {
  std::vector<OptionSpec> options = ExpectedAttentionScorer::options(false);
  TwoStages::add_options(options, true);
  options.push_back(OptionSpec::boolean("hard-sinks", false, "take the sinks out of both stages and keep them"));
  return {
      .name = "criticalada-expected-attention",
      .summary = "AdaKV's head budgets over ExpectedAttention's guess, filled in CriticalKV's two stages",
      .paper = "CriticalKV, 2025, arXiv 2502.03805, over kvpress's ExpectedAttention",
      .description =
          "As criticaladakv:variant=kvpress-0.5.5, with s the attention that expected-attention expects, without its "
          "value norm. The sinks compete at the largest score plus one, as published; hard-sinks=true keeps them "
          "outright. A larger budget need not keep what a smaller one keeps.",
      .default_allocator = "layer",
      .needs = "all prompt queries before RoPE, K, V, W_o",
      .nested = false,
      .only_allocator = "layer",
      .options = std::move(options),
      .make = make_scorer<CriticalAdaExpectedAttention>,
  };
}

}  // namespace laprox
