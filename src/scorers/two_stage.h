#pragma once

#include <span>
#include <vector>

#include "laprox/ranking.h"
#include "laprox/scorer.h"

namespace laprox {

/// What CriticalKV's two stages need of a layer, [kv_heads, C] each.
struct CriticalScores {
  Matrix base;      ///< s, the base scorer's
  Matrix critical;  ///< (s + epsilon) * mean over the group of ||v_i W_O^h||_1
};

/// How CriticalKV (arXiv 2502.03805) fills a budget in two stages, whatever the base scorer: the best tokens by s, then
/// the best others by s'.
struct TwoStages {
  double epsilon = 1e-4;      ///< added to s in the second stage
  double share = 0.5;         ///< of the budget, which the first stage fills
  bool at_least_one = false;  ///< kvpress 0.5.5: a share above 0 is worth a token

  /// Appends the options first-stage and epsilon; before them safeguard, where it is wanted (see marks).
  static void add_options(std::vector<OptionSpec>& options, bool safeguard);
  static TwoStages of(const Options& options, bool at_least_one);

  /// The tokens that the first stage picks of `count`.
  Index first(Index count) const;
  CriticalScores scores(Matrix base, Index group, ScoringKernels& kernels) const;

  /// CriticalKV: both stages grow with the budget, so that one order serves every budget. Scores [kv_heads, C] that are
  /// places in it; those of pinned tokens are 0.
  Matrix places(const CriticalScores& scores, const Pins& pins) const;

  /// CriticalAdaKV: AdaKV's head budgets, each filled in two stages. 1 for what is kept, [kv_heads, C] for each budget;
  /// those of pinned tokens are 0. `safeguard`: the share of an equal budget that every head is sure of.
  std::vector<Matrix> marks(const CriticalScores& scores, const Pins& pins, std::span<const Index> budgets,
                            double safeguard) const;
};

}  // namespace laprox
