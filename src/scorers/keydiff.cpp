#include <algorithm>
#include <numeric>

#include "laprox/scorer.h"
#include "scorers/key_blocks.h"
#include "scorers/key_directions.h"

namespace laprox {

namespace {

/// KeyDiff: keys that differ most from the average direction of all keys.
class KeyDiff : public Scorer {
 public:
  explicit KeyDiff(const Options& options)
      : Scorer({.depends_on_budget = options.integer("block") > 0,
                .scores_are_places = options.integer("block") > 0,
                .below_zero = options.integer("block") == 0}),
        block_(options.integer("block")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const Matrix anchors = mean_directions(layer, kernels.threads());
    Matrix scores(layer.geometry().kv_heads, layer.context_length());
    for_each_key_block(layer, kernels.threads(), [&](Index head, Index, Index first, const Matrix& keys) {
      scores.row(head).segment(first, keys.rows()) = dissimilarity_to(anchors.row(head), keys);
    });
    return scores;
  }

  /// 1 for the tokens that a cache of the budget's size holds after the last block.
  std::vector<Matrix> score_each(std::span<const Index> budgets, const LayerView& layer,
                                 ScoringKernels&) const override {
    std::vector<Matrix> scores(budgets.size(), Matrix::Zero(layer.geometry().kv_heads, layer.context_length()));
    for (Index head = 0; head < layer.geometry().kv_heads; ++head) {
      const Matrix keys = layer.keys(head);
      for (std::size_t b = 0; b < budgets.size(); ++b) {
        for (Index i : survivors(keys, budgets[b])) scores[b](head, i) = 1;
      }
    }
    return scores;
  }

 private:
  /// Of each KV head's keys: [kv_heads, d]. Blocks are added in their order, whatever the threads.
  static Matrix mean_directions(const LayerView& layer, int threads) {
    const LayerGeometry& g = layer.geometry();
    const Index blocks = (layer.context_length() + kKeyBlock - 1) / kKeyBlock;
    Matrix of_blocks(g.kv_heads * blocks, g.head_size), means(g.kv_heads, g.head_size);
    for_each_key_block(layer, threads, [&](Index head, Index block, Index, const Matrix& keys) {
      of_blocks.row(head * blocks + block) = summed_directions(keys);
    });
    for (Index head = 0; head < g.kv_heads; ++head) {
      means.row(head) = of_blocks.middleRows(head * blocks, blocks).colwise().sum();
    }
    return means / static_cast<double>(layer.context_length());
  }

  /// The first `size` tokens, then block by block: the best `size` of those held and the block's.
  std::vector<Index> survivors(const Matrix& keys, Index size) const {
    std::vector<Index> held(static_cast<std::size_t>(size));
    std::iota(held.begin(), held.end(), Index{0});
    for (Index first = size; first < keys.rows(); first += block_) {
      for (Index i = first; i < std::min(keys.rows(), first + block_); ++i) held.push_back(i);
      const Eigen::RowVectorXd scores = dissimilarity(keys(held, Eigen::all));
      const Ranking order = rank_by_score({scores.data(), held.size()}, {});
      std::vector<Index> best;
      for (Index n = 0; n < size; ++n) best.push_back(held[order[n]]);
      std::sort(best.begin(), best.end());
      held = std::move(best);
    }
    return held;
  }

  Index block_;
};

}  // namespace

ScorerInfo keydiff_info() {
  return {
      .name = "keydiff",
      .summary = "keys least similar to the average key direction; reads no query",
      .paper = "KeyDiff, 2025, arXiv 2504.15364",
      .description =
          "s[i] = -cos(k_i, m), m = mean of k_i / ||k_i|| over all context tokens. Nothing is protected. block=N "
          "evicts as the paper does, after every N tokens of the prompt, each time scored against the mean of what "
          "the cache holds then; keydiff-block128 is that with N = 128. The kept set then depends on the path, so a "
          "larger budget need not keep what a smaller one keeps.",
      .default_allocator = "head",
      .needs = "K",
      .options = {OptionSpec::integer("block", 0, 0, 1 << 20,
                                      "evict after every so many tokens; 0: once, after the prompt")},
      .make = make_scorer<KeyDiff>,
  };
}

}  // namespace laprox
