#include <algorithm>
#include <cmath>
#include <numeric>

#include "laprox/error.h"
#include "scorers/snapkv_scorer.h"

namespace laprox {

namespace {

/// What kvpress adds to sums and under logarithms.
constexpr double kEpsilon = 1e-8;

/// EntropyGatedChunkKV: ChunkKV whose important chunks give up all but a few tokens where those few hold the score.
class EntropyChunkKV : public SnapKVScorer {
 public:
  explicit EntropyChunkKV(const Options& options)
      : SnapKVScorer(options, "entropy-chunkkv", {.scores_are_places = true},
                     options.boolean("hard-window") ? WindowTokens::pinned : WindowTokens::compete),
        chunk_(options.integer("chunk")),
        spiky_(options.integer("spiky")) {
    if (spiky_ >= chunk_) {
      throw UsageError("entropy-chunkkv: option spiky: expected fewer tokens than a chunk has, chunk=" +
                       std::to_string(chunk_) + ", found " + std::to_string(spiky_));
    }
  }

  /// The budget ends the walk over chunks but does not change it, so that one order serves every budget; the scores are
  /// places in that order.
  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const Eigen::RowVectorXd sums = padded_scores(layer, kernels).colwise().sum();
    Eigen::RowVectorXd places = Eigen::RowVectorXd::Zero(sums.size());
    double place = static_cast<double>(sums.size());
    for (Index token : order_of(sums)) places[token] = place--;
    return places.replicate(layer.geometry().kv_heads, 1);
  }

 private:
  struct Chunk {
    Index first, size;
    double mean, entropy;
  };

  std::vector<Index> order_of(const Eigen::RowVectorXd& sums) const {
    std::vector<Chunk> chunks = chunks_of(sums);
    std::vector<double> means, entropies;
    for (const Chunk& chunk : chunks) {
      means.push_back(chunk.mean);
      entropies.push_back(chunk.entropy);
    }
    const double usual_mean = lower_median(means), usual_entropy = lower_median(entropies);
    std::stable_sort(chunks.begin(), chunks.end(), [](const Chunk& a, const Chunk& b) { return a.mean > b.mean; });
    std::vector<Index> order, left_over;
    for (const Chunk& chunk : chunks) {
      const bool spiky = chunk.mean >= usual_mean && chunk.entropy < usual_entropy;
      std::vector<Index> tokens(static_cast<std::size_t>(chunk.size));
      std::iota(tokens.begin(), tokens.end(), chunk.first);
      best_first(tokens, sums);
      const auto end = tokens.begin() + (spiky ? std::min(spiky_, chunk.size) : chunk.size);
      order.insert(order.end(), tokens.begin(), end);
      left_over.insert(left_over.end(), end, tokens.end());
    }
    best_first(left_over, sums);
    order.insert(order.end(), left_over.begin(), left_over.end());
    return order;
  }

  std::vector<Chunk> chunks_of(const Eigen::RowVectorXd& sums) const {
    std::vector<Chunk> chunks;
    for (Index first = 0; first < sums.size(); first += chunk_) {
      const Index size = std::min(chunk_, sums.size() - first);
      const Eigen::ArrayXd scores = sums.segment(first, size).transpose();
      const Eigen::ArrayXd p = scores / (scores.sum() + kEpsilon);
      const double nats = size > 1 ? -(p * (p + kEpsilon).log()).sum() / std::log(static_cast<double>(size)) : 0;
      chunks.push_back({first, size, scores.mean(), std::clamp(nats, 0.0, 1.0)});
    }
    return chunks;
  }

  /// torch's median: of an even number, the lower one of the two in the middle.
  static double lower_median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }

  static void best_first(std::vector<Index>& tokens, const Eigen::RowVectorXd& sums) {
    std::sort(tokens.begin(), tokens.end(),
              [&](Index a, Index b) { return sums[a] != sums[b] ? sums[a] > sums[b] : a < b; });
  }

  Index chunk_, spiky_;
};

}  // namespace

ScorerInfo entropy_chunkkv_info() {
  std::vector<OptionSpec> options = SnapKVScorer::options("max", 7);
  options.push_back(OptionSpec::integer("chunk", 10, 2, 1 << 20, "tokens per chunk"));
  options.push_back(OptionSpec::integer("spiky", 4, 1, 1 << 20, "tokens that an important but spiky chunk keeps"));
  options.push_back(OptionSpec::boolean("hard-window", false, "keep the window whatever the other scores"));
  return {
      .name = "entropy-chunkkv",
      .summary = "ChunkKV that cuts important chunks to a few tokens where these hold most of the score",
      .paper = "kvpress 0.5.5, EntropyGatedChunkKVPress, 2026, after arXiv 2502.00299",
      .description =
          "s[i] = sum over KV heads of SnapKV's score, the window at the largest score plus one. A chunk has the mean "
          "of its s and the entropy of s / sum of s, divided by ln(its tokens). Chunks come in the order of their "
          "means and are taken whole, but of one whose mean is at least the median and whose entropy is below the "
          "median only the best `spiky` tokens; then come all tokens that are left, best first. The budget cuts this "
          "order, so that it is spent exactly. All KV heads keep the same tokens. The window competes, as published, "
          "and a chunk that it shares with earlier tokens is spiky: hard-window=true keeps it outright.",
      .default_allocator = "head",
      .needs = "window queries, K",
      .only_allocator = "head",
      .options = std::move(options),
      .make = make_scorer<EntropyChunkKV>,
  };
}

}  // namespace laprox
