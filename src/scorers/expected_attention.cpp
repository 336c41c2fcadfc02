#include "scorers/expected_attention_scorer.h"

namespace laprox {

namespace {

/// ExpectedAttention: the attention that a Gaussian guess of the coming queries pays.
class ExpectedAttention : public ExpectedAttentionScorer {
 public:
  explicit ExpectedAttention(const Options& options) : ExpectedAttentionScorer(options, options.real("epsilon")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    return expected_scores(layer, kernels);
  }
};

}  // namespace

ScorerInfo expected_attention_info() {
  std::vector<OptionSpec> options = ExpectedAttentionScorer::options(true);
  options.push_back(
      OptionSpec::real("epsilon", 0, 0, 1, "added to the attention before the value's norm multiplies it"));
  return {
      .name = "expected-attention",
      .summary = "attention expected from coming queries, guessed as a Gaussian of the prompt's, times the value norm",
      .paper = "ExpectedAttention, 2025, kvpress",
      .description =
          "The prompt's queries behind the sinks, before RoPE, have mean mu and covariance S (divided by their "
          "number). R is the mean of RoPE's rotations over the next `future` positions. s[i] = (p[i] + epsilon) * "
          "||v_i||_2 with p = softmax over i of scale * <R mu, k_i> + scale^2 / 2 * k_i R S R^T k_i, meaned over the "
          "group; the sinks are kept. The registry of kvpress wraps it in AdaKV with epsilon 0.01: "
          "expected-attention+ada:variant=kvpress,epsilon=0.01. The variant with statistics of other texts needs a "
          "file that a dump does not hold.",
      .default_allocator = "head",
      .needs = "all prompt queries before RoPE, K, V",
      .options = std::move(options),
      .make = make_scorer<ExpectedAttention>,
  };
}

}  // namespace laprox
