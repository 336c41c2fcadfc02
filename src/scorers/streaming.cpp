#include "laprox/scorer.h"

namespace laprox {

namespace {

/// StreamingLLM: the first tokens (attention sinks) and the most recent ones.
class Streaming : public Scorer {
 public:
  explicit Streaming(const Options& options) : Scorer({.pins = {.first = options.integer("sinks")}}) {}

  Matrix score(const LayerView& layer, ScoringKernels&) const override {
    const Index context = layer.context_length();
    return Eigen::RowVectorXd::LinSpaced(context, 0.0, static_cast<double>(context - 1))
        .replicate(layer.geometry().kv_heads, 1);
  }
};

}  // namespace

ScorerInfo streaming_info() {
  return {
      .name = "streaming",
      .summary = "StreamingLLM: the first tokens and the most recent ones",
      .paper = "StreamingLLM, 2023, arXiv 2309.17453",
      .description =
          "Positions only: {0 .. sinks-1} and the last b - sinks tokens. The sinks count inside the budget. Positions "
          "are not re-assigned inside the cache, as the original code does while it decodes.",
      .default_allocator = "head",
      .needs = "-",
      .options = {OptionSpec::integer("sinks", 4, 0, 1 << 20, "first tokens that are always kept")},
      .make = make_scorer<Streaming>,
  };
}

}  // namespace laprox
