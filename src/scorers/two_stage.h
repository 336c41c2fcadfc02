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
CriticalScores critical_scores(Matrix base, double epsilon, Index group, ScoringKernels& kernels);

/// the best `first` of the tokens by `base`, then the best others by `critical`, `count` in all: token numbers.
std::vector<Index> two_stages(const Ranking& by_base, const Ranking& by_critical, Index first, Index count);

}  // namespace laprox
