#include <algorithm>

#include "scorers/snapkv_score.h"

namespace laprox {

namespace {

/// ChunkKV: whole chunks of neighbouring tokens, the same for every head of a layer.
class ChunkKV : public Scorer {
 public:
  explicit ChunkKV(const Options& options)
      : base_(options, "chunkkv"), chunk_(options.integer("chunk")), whole_(options.text("variant") == "kvpress") {}

  QueryNeed queries() const override { return {.kind = QueryNeed::Kind::window, .window = base_.window()}; }
  Pins pins() const override { return {.last = whole_ ? 0 : base_.window()}; }

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    if (layer.context_length() < chunk_) return base_.padded(layer, kernels);
    Eigen::RowVectorXd sums = base_.padded(layer, kernels).colwise().sum();
    for (Index first = 0; first < sums.size(); first += chunk_) {
      auto chunk = sums.segment(first, std::min(chunk_, sums.size() - first));
      chunk.setConstant(chunk.mean());
    }
    return sums.replicate(layer.geometry().kv_heads, 1);
  }

  bool spends_exactly() const override { return !whole_; }
  /// The tokens of the best max(1, int(chunks * share)) chunks, of which the context's last one may be shorter.
  Index spends(Index tokens, Index, const Ranking& ranking) const override {
    const Index context = static_cast<Index>(ranking.size());
    if (context < chunk_) return tokens;
    const Index chunks = (context + chunk_ - 1) / chunk_, chosen = std::max<Index>(1, chunks * tokens / context);
    Index kept = 0;
    for (Index n = 0; n < chosen; ++n) {
      const Index first = ranking[static_cast<std::size_t>(kept)] / chunk_ * chunk_;
      kept += std::min(chunk_, context - first);
    }
    return kept;
  }

 private:
  SnapKVScore base_;
  Index chunk_;
  bool whole_;
};

}  // namespace

ScorerInfo chunkkv_info() {
  std::vector<OptionSpec> options = SnapKVScore::options("max", 7);
  options.push_back(OptionSpec::integer("chunk", 20, 1, 1 << 20, "tokens per chunk"));
  options.push_back(OptionSpec::choice("variant", "exact", {"exact", "kvpress"},
                                       "cut the last chunk at the budget, or keep whole chunks only"));
  return {
      .name = "chunkkv",
      .summary = "SnapKV's scores averaged over chunks of tokens, one set of chunks per layer",
      .paper = "ChunkKV, 2025, arXiv 2502.00299",
      .description =
          "A chunk's score is the mean over its tokens of the sum over KV heads of SnapKV's score, the window at the "
          "largest score plus one; all KV heads keep the same chunks. By default the window is kept and the last "
          "chunk is cut so that the budget is exact. variant=kvpress keeps max(1, int(chunks * share)) whole chunks, "
          "so that the tokens kept differ from the budget. The paper's reuse of one layer's chunks in the next is not "
          "in the published code.",
      .default_allocator = "head",
      .needs = "window queries, K",
      .only_allocator = "head",
      .options = std::move(options),
      .make = [](Options& chosen) -> std::unique_ptr<Scorer> { return std::make_unique<ChunkKV>(chosen); },
  };
}

}  // namespace laprox
