#include <cmath>

#include "allocators/top_k.h"
#include "scorers/snapkv_scorer.h"
#include "scorers/two_stage.h"

namespace laprox {

namespace {

/// CriticalAdaKV: AdaKV's head budgets, filled in CriticalKV's two stages.
class CriticalAdaKV : public SnapKVScorer {
 public:
  explicit CriticalAdaKV(const Options& options)
      : SnapKVScorer(options, "criticaladakv", {.depends_on_budget = true, .scores_are_places = true},
                     options.boolean("hard-window") ? WindowTokens::pinned : WindowTokens::compete),
        epsilon_(options.real("epsilon")),
        first_stage_(options.real("first-stage")),
        safeguard_(options.real("safeguard")) {}

  /// 1 for what is kept: the second stage of a head depends on how many tokens the head won.
  std::vector<Matrix> score_each(std::span<const Index> budgets, const LayerView& layer,
                                 ScoringKernels& kernels) const override {
    const Matrix base = pins_window() ? snapkv_scores(layer, kernels) : padded_scores(layer, kernels);
    const CriticalScores scores = critical_scores(base, epsilon_, layer.geometry().group(), kernels);
    const Index pinned = traits().pins.count(layer.context_length());
    const auto unpinned = static_cast<std::size_t>(layer.context_length() - pinned);
    std::vector<Ranking> by_base, by_critical;
    std::vector<std::vector<double>> sorted;
    for (Index head = 0; head < base.rows(); ++head) {
      by_base.push_back(rank_by_score({&scores.base(head, 0), unpinned}, {}));
      by_critical.push_back(rank_by_score({&scores.critical(head, 0), unpinned}, {}));
      for (auto& list = sorted.emplace_back(); std::int32_t token : by_base.back()) {
        list.push_back(scores.base(head, token));
      }
    }
    std::vector<Matrix> kept;
    for (Index tokens : budgets) {
      const Index share = tokens - pinned, safe = static_cast<Index>(std::floor(share * safeguard_));
      const std::vector<Index> won = top_k_counts_above(sorted, safe, share * base.rows());
      Matrix& marks = kept.emplace_back(Matrix::Zero(base.rows(), base.cols()));
      for (Index head = 0; head < base.rows(); ++head) {
        const auto at = static_cast<std::size_t>(head);
        const auto first = static_cast<Index>(std::floor(static_cast<double>(won[at]) * first_stage_));
        for (Index token : two_stages(by_base[at], by_critical[at], std::max(safe, first), won[at])) {
          marks(head, token) = 1;
        }
      }
    }
    return kept;
  }

 private:
  double epsilon_, first_stage_, safeguard_;
};

}  // namespace

ScorerInfo criticaladakv_info() {
  std::vector<OptionSpec> options = SnapKVScorer::options("max", 7);
  options.push_back(OptionSpec::real("safeguard", 0.2, 0, 1, "share of an equal budget that every head is sure of"));
  options.push_back(OptionSpec::real("first-stage", 0.5, 0, 1, "share of a head's tokens that the first stage picks"));
  options.push_back(OptionSpec::real("epsilon", 1e-4, 0, 1, "added to the attention in the second stage"));
  options.push_back(OptionSpec::boolean("hard-window", false, "take the window out of both stages and keep it"));
  return {
      .name = "criticaladakv",
      .summary = "AdaKV's head budgets (kvpress form), filled in CriticalKV's two stages",
      .paper = "CriticalKV, 2025, arXiv 2502.03805",
      .description =
          "Each head is sure of n = int(b * safeguard) tokens; the layer's other entries go to the best by s. A head "
          "that won c tokens keeps its best max(n, int(c / 2)) by s and fills up by s' = (s + epsilon) * ||v_i "
          "W_O^h||_1. The window competes at the largest score plus one, as published; hard-window=true keeps it "
          "outright. A larger budget need not keep what a smaller one keeps.",
      .default_allocator = "layer",
      .needs = "window queries, K, V, W_o",
      .nested = false,
      .only_allocator = "layer",
      .options = std::move(options),
      .make = make_scorer<CriticalAdaKV>,
  };
}

}  // namespace laprox
