#include "scorers/snapkv_scorer.h"

namespace laprox {

namespace {

/// SnapKV: the attention that the last prompt queries pay, pooled over neighbouring tokens.
class SnapKV : public SnapKVScorer {
 public:
  explicit SnapKV(const Options& options) : SnapKVScorer(options, "snapkv") {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override { return snapkv_scores(layer, kernels); }
};

}  // namespace

ScorerInfo snapkv_info() {
  return {
      .name = "snapkv",
      .summary = "attention of the last prompt queries, max-pooled over neighbouring tokens",
      .paper = "SnapKV, 2024, arXiv 2404.14469",
      .description =
          "s[i] = mean over the window's queries of A_h[t, i], reduced over the group, pooled over the tokens before "
          "the window; the window is kept. Defaults are the paper's LongBench configuration (window 32, max pool 7) "
          "at KV-head granularity; kvpress uses window=64,kernel=5,pool=avg. The original code keeps one set per "
          "query head, which multiplies the memory by the group size.",
      .default_allocator = "head",
      .needs = "window queries, K",
      .options = SnapKVScorer::options("max", 7),
      .make = make_scorer<SnapKV>,
  };
}

}  // namespace laprox
