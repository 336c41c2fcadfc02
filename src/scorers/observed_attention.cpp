#include "laprox/scorer.h"
#include "scorers/groups.h"

namespace laprox {

namespace {

/// ObservedAttention: the mean attention that a token receives from the queries that can see it.
class ObservedAttention : public Scorer {
 public:
  ObservedAttention() : Scorer({.queries = {.kind = QueryNeed::Kind::all}}) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    Matrix scores = reduce_groups(kernels.column_sums(), layer.geometry().group(), GroupReduction::mean);
    for (Index i = 0; i < scores.cols(); ++i) scores.col(i) /= static_cast<double>(scores.cols() - i);
    return scores;
  }
};

}  // namespace

ScorerInfo observed_attention_info() {
  return {
      .name = "observed-attention",
      .summary = "mean attention received from the queries that can see the token (not H2O)",
      .paper = "kvpress ObservedAttentionPress, 2024, after arXiv 2306.14048",
      .description =
          "s[i] = mean over the group of sum over t >= i of A_h[t, i] / (C - i): H2O's column sum divided by the "
          "number of queries that see the token, which favours late tokens. Nothing is protected.",
      .default_allocator = "head",
      .needs = "all prompt queries, K",
      .options = {},
      .make = make_scorer<ObservedAttention>,
  };
}

}  // namespace laprox
