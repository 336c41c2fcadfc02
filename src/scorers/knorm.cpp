#include "laprox/scorer.h"
#include "scorers/key_blocks.h"

namespace laprox {

namespace {

/// Knorm: keys of small norm attract attention.
class Knorm : public Scorer {
 public:
  explicit Knorm(const Options& options)
      : Scorer({.spends_exactly = options.integer("skip-layers") == 0, .below_zero = true}),
        skip_layers_(options.integer("skip-layers")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    Matrix scores(layer.geometry().kv_heads, layer.context_length());
    for_each_key_block(layer, kernels.threads(), [&](Index head, Index, Index first, const Matrix& keys) {
      scores.row(head).segment(first, keys.rows()) = -keys.rowwise().norm().transpose();
    });
    return scores;
  }

  Index spends(Index tokens, Index layer, const Ranking& ranking) const override {
    return layer < skip_layers_ ? static_cast<Index>(ranking.size()) : tokens;
  }

 private:
  Index skip_layers_;
};

}  // namespace

ScorerInfo knorm_info() {
  return {
      .name = "knorm",
      .summary = "keys of small L2 norm first; reads no query",
      .paper = "L2Norm, 2024, arXiv 2406.11430",
      .description =
          "s[i] = -||k_i||_2 (rotary positions do not change it). Nothing is protected. The code of KVCache-Factory "
          "never compresses the first two layers: skip-layers=2, which spends more than the budget.",
      .default_allocator = "head",
      .needs = "K",
      .options = {OptionSpec::integer("skip-layers", 0, 0, 1 << 20,
                                      "first layers that keep everything, beyond the budget")},
      .make = make_scorer<Knorm>,
  };
}

}  // namespace laprox
