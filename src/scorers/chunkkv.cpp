#include <algorithm>

#include "scorers/snapkv_scorer.h"

namespace laprox {

namespace {

/// ChunkKV: whole chunks of neighbouring tokens, the same for every head of a layer.
class ChunkKV : public SnapKVScorer {
 public:
  explicit ChunkKV(const Options& options)
      : SnapKVScorer(options, "chunkkv", {.spends_exactly = !whole_chunks(options)},
                     whole_chunks(options) ? WindowTokens::compete : WindowTokens::pinned),
        chunk_(options.integer("chunk")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    if (layer.context_length() < chunk_) return padded_scores(layer, kernels);
    Eigen::RowVectorXd sums = padded_scores(layer, kernels).colwise().sum();
    for (Index first = 0; first < sums.size(); first += chunk_) {
      auto chunk = sums.segment(first, std::min(chunk_, sums.size() - first));
      const double base = chunk[0];  // equal scores have exactly theirs as mean: chunks of the window tie
      chunk.setConstant(base + (chunk.array() - base).mean());
    }
    return sums.replicate(layer.geometry().kv_heads, 1);
  }

  /// The tokens of the best max(1, int(chunks * share)) chunks, of which the context's last one may be shorter.
  Index spends(Index tokens, Index, const Ranking& ranking) const override {
    const Index context = static_cast<Index>(ranking.size());
    if (context < chunk_) return tokens;
    const Index chunks = (context + chunk_ - 1) / chunk_, chosen = std::max<Index>(1, chunks * tokens / context);
    Index kept = 0;
    for (Index n = 0; n < chosen; ++n) {
      const Index first = ranking[kept] / chunk_ * chunk_;
      kept += std::min(chunk_, context - first);
    }
    return kept;
  }

 private:
  static bool whole_chunks(const Options& options) { return options.text("variant") == "kvpress"; }

  Index chunk_;
};

}  // namespace

ScorerInfo chunkkv_info() {
  std::vector<OptionSpec> options = SnapKVScorer::options("max", 7);
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
          "so that the tokens kept differ from the budget, and is SnapKV where the prompt is shorter than a chunk. The "
          "paper's reuse of one layer's chunks in the next is not in the published code.",
      .default_allocator = "head",
      .needs = "window queries, K",
      .only_allocator = "head",
      .options = std::move(options),
      .make = make_scorer<ChunkKV>,
  };
}

}  // namespace laprox
