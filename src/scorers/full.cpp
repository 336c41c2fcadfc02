#include "laprox/scorer.h"

namespace laprox {

namespace {

/// The full cache: evicts nothing at any budget. Its error is exactly 0, which every sweep thereby checks.
class Full : public Scorer {
 public:
  Full() : Scorer({.keeps_everything = true}) {}

  Matrix score(const LayerView& layer, ScoringKernels&) const override {
    return Matrix::Zero(layer.geometry().kv_heads, layer.context_length());
  }
};

}  // namespace

ScorerInfo full_info() {
  return {
      .name = "full",
      .summary = "keeps the whole context at every budget (reference; error 0)",
      .paper = "",
      .description = "No eviction. The budget is ignored; kept counts are the context length.",
      .default_allocator = "head",
      .needs = "-",
      .options = {},
      .make = make_scorer<Full>,
  };
}

}  // namespace laprox
