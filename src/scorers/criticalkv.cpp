#include <cmath>

#include "scorers/snapkv_scorer.h"
#include "scorers/two_stage.h"

namespace laprox {

namespace {

/// CriticalKV: half of the budget by attention, the rest by attention times the norm of the projected value.
class CriticalKV : public SnapKVScorer {
 public:
  explicit CriticalKV(const Options& options)
      : SnapKVScorer(options, "criticalkv", {.scores_are_places = true},
                     options.text("variant") == "kvpress" ? WindowTokens::compete : WindowTokens::pinned),
        epsilon_(options.real("epsilon")),
        first_stage_(options.real("first-stage")) {}

  /// Both stages grow with the budget, so that one order serves every budget; the scores are places in that order.
  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const Matrix base = pins_window() ? snapkv_scores(layer, kernels) : padded_scores(layer, kernels);
    const CriticalScores scores = critical_scores(base, epsilon_, layer.geometry().group(), kernels);
    const Index unpinned = layer.context_length() - traits().pins.count(layer.context_length());
    Matrix places = Matrix::Zero(base.rows(), base.cols());
    for (Index head = 0; head < base.rows(); ++head) {
      const auto row = [&](const Matrix& of) {
        return rank_by_score({&of(head, 0), static_cast<std::size_t>(unpinned)}, {});
      };
      double place = static_cast<double>(unpinned);
      for (Index token : entry_order(row(scores.base), row(scores.critical))) places(head, token) = place--;
    }
    return places;
  }

 private:
  /// The token that joins at each budget 1, 2, ...: where the first stage grows, its next token, unless the second
  /// stage had it before; else the best one still out by the second stage's score.
  std::vector<Index> entry_order(const Ranking& by_base, const Ranking& by_critical) const {
    std::vector<bool> taken(by_base.size());
    std::vector<Index> order;
    std::size_t next_critical = 0;
    for (std::size_t budget = 1; budget <= by_base.size(); ++budget) {
      const Index first = first_stage(budget);
      auto token = static_cast<std::size_t>(by_base[static_cast<std::size_t>(std::max<Index>(first, 1)) - 1]);
      if (first == first_stage(budget - 1) || taken[token]) {
        while (taken[static_cast<std::size_t>(by_critical[next_critical])]) ++next_critical;
        token = static_cast<std::size_t>(by_critical[next_critical]);
      }
      taken[token] = true;
      order.push_back(static_cast<Index>(token));
    }
    return order;
  }
  Index first_stage(std::size_t budget) const {
    return static_cast<Index>(std::floor(static_cast<double>(budget) * first_stage_));
  }

  double epsilon_, first_stage_;
};

}  // namespace

ScorerInfo criticalkv_info() {
  std::vector<OptionSpec> options = SnapKVScorer::options("max", 7);
  options.push_back(OptionSpec::real("first-stage", 0.5, 0, 1, "share of the budget that the first stage fills"));
  options.push_back(OptionSpec::real("epsilon", 1e-4, 0, 1, "added to the attention in the second stage"));
  options.push_back(
      OptionSpec::choice("variant", "hard-window", {"hard-window", "kvpress"}, "how the window is protected"));
  return {
      .name = "criticalkv",
      .summary = "SnapKV's attention first, then attention times the L1 norm of the projected value",
      .paper = "CriticalKV, 2025, arXiv 2502.03805",
      .description =
          "s is SnapKV's score and s' = (s + epsilon) * mean over the group of ||v_i W_O^h||_1. Half of the budget "
          "goes to the best tokens by s, the rest to the best others by s'. By default the window is kept and both "
          "stages share what is left. variant=kvpress reproduces the published code: the window competes at the "
          "largest score plus one in the first stage and at that times its value norm in the second, where it can "
          "lose.",
      .default_allocator = "head",
      .needs = "window queries, K, V, W_o",
      .only_allocator = "head",
      .options = std::move(options),
      .make = make_scorer<CriticalKV>,
  };
}

}  // namespace laprox
