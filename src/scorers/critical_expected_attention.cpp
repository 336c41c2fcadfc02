#include "scorers/expected_attention_scorer.h"
#include "scorers/two_stage.h"

namespace laprox {

namespace {

/// CriticalKV over ExpectedAttention in the place of SnapKV.
class CriticalExpectedAttention : public ExpectedAttentionScorer {
 public:
  explicit CriticalExpectedAttention(const Options& options)
      : ExpectedAttentionScorer(options, 0, {.scores_are_places = true},
                                published(options) ? Sinks::compete : Sinks::pinned),
        stages_(TwoStages::of(options, published(options))) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    return stages_.places(stages_.scores(base_scores(layer, kernels), layer.geometry().group(), kernels),
                          traits().pins);
  }

 private:
  static bool published(const Options& options) { return options.text("variant") == "kvpress-0.5.5"; }

  TwoStages stages_;
};

}  // namespace

ScorerInfo critical_expected_attention_info() {
  std::vector<OptionSpec> options = ExpectedAttentionScorer::options(false);
  TwoStages::add_options(options, false);
  options.push_back(
      OptionSpec::choice("variant", "hard-sinks", {"hard-sinks", "kvpress-0.5.5"}, "how the sinks are protected"));
  return {
      .name = "critical-expected-attention",
      .summary = "ExpectedAttention's guess first, then that times the L1 norm of the projected value",
      .paper = "CriticalKV, 2025, arXiv 2502.03805, over kvpress's ExpectedAttention",
      .description =
          "As criticalkv, with s the attention that expected-attention expects, without its value norm, which the "
          "second stage would count twice (kvpress warns of it). By default the sinks are kept and both stages share "
          "what is left. variant=kvpress-0.5.5 reproduces the published code: the sinks compete at the largest score "
          "plus one in the first stage and at that times their value norms in the second, where they can lose, and the first stage picks "
          "at least one token.",
      .default_allocator = "head",
      .needs = "all prompt queries before RoPE, K, V, W_o",
      .only_allocator = "head",
      .options = std::move(options),
      .make = make_scorer<CriticalExpectedAttention>,
  };
}

}  // namespace laprox
