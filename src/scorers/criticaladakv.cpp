#include <cmath>

#include "allocators/top_k.h"
#include "scorers/snapkv_score.h"
#include "scorers/two_stage.h"

namespace laprox {

namespace {

/// CriticalAdaKV: AdaKV's head budgets, filled in CriticalKV's two stages.
class CriticalAdaKV : public Scorer {
 public:
  explicit CriticalAdaKV(const Options& options)
      : base_(options, "criticaladakv"),
        epsilon_(options.real("epsilon")),
        first_stage_(options.real("first-stage")),
        safeguard_(options.real("safeguard")),
        hard_window_(options.boolean("hard-window")) {}

  QueryNeed queries() const override { return {.kind = QueryNeed::Kind::window, .window = base_.window()}; }
  Pins pins() const override { return {.last = hard_window_ ? base_.window() : 0}; }
  bool depends_on_budget() const override { return true; }
  bool scores_are_places() const override { return true; }

  /// 1 for what is kept: the second stage of a head depends on how many tokens the head won.
  std::vector<Matrix> score_each(std::span<const Index> budgets, const LayerView& layer,
                                 ScoringKernels& kernels) const override {
    const Matrix base = hard_window_ ? base_.of(layer, kernels) : base_.padded(layer, kernels);
    const CriticalScores scores = critical_scores(base, epsilon_, layer.geometry().group(), kernels);
    const Index pinned = pins().count(layer.context_length());
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
  SnapKVScore base_;
  double epsilon_, first_stage_, safeguard_;
  bool hard_window_;
};

}  // namespace

ScorerInfo criticaladakv_info() {
  std::vector<OptionSpec> options = SnapKVScore::options("max", 7);
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
      .make = [](Options& chosen) -> std::unique_ptr<Scorer> { return std::make_unique<CriticalAdaKV>(chosen); },
  };
}

}  // namespace laprox
