#include "laprox/scorer.h"

namespace laprox {

namespace {

/// TOVA: what the last prompt query attends to, one set for the whole layer.
class Tova : public Scorer {
 public:
  explicit Tova(const Options& options)
      : Scorer({.queries = {.kind = QueryNeed::Kind::window, .window = 1},
                .pins = {.last = options.boolean("force-last") ? 1 : 0}}) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    return kernels.window_statistics(1).sum.colwise().mean().replicate(layer.geometry().kv_heads, 1);
  }
};

}  // namespace

ScorerInfo tova_info() {
  return {
      .name = "tova",
      .summary = "attention of the last prompt query, one set of tokens per layer",
      .paper = "TOVA, 2024, arXiv 2401.06104",
      .description =
          "s[i] = mean over all query heads of the layer of A_h[C-1, i]; every KV head keeps the same tokens. Nothing "
          "is protected in the official code: the last token competes with its own weight. kvpress always keeps it: "
          "force-last=true. One eviction after the prompt; with --schedule step at every decoded token, as the official "
          "code does.",
      .default_allocator = "head",
      .needs = "last query, K",
      .options = {OptionSpec::boolean("force-last", false, "always keep the last prompt token (kvpress)")},
      .make = make_scorer<Tova>,
  };
}

}  // namespace laprox
