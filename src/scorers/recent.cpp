#include "laprox/scorer.h"

namespace laprox {

namespace {

/// The last tokens of the context, whatever they hold.
class Recent : public Scorer {
 public:
  Recent() : Scorer({}) {}

  Matrix score(const LayerView& layer, ScoringKernels&) const override {
    const Index context = layer.context_length();
    return Eigen::RowVectorXd::LinSpaced(context, 0.0, static_cast<double>(context - 1))
        .replicate(layer.geometry().kv_heads, 1);
  }
};

}  // namespace

ScorerInfo recent_info() {
  return {
      .name = "recent",
      .summary = "keeps the most recent tokens (sliding window; reference)",
      .paper = "",
      .description = "The last b tokens of the context. Equal to dense attention over that window.",
      .default_allocator = "head",
      .needs = "-",
      .options = {},
      .make = make_scorer<Recent>,
  };
}

}  // namespace laprox
