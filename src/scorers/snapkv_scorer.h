#pragma once

#include <string>

#include "scorers/window_scorer.h"

namespace laprox {

/// Base of the methods that build on SnapKV's score (arXiv 2404.14469): the mean over the window's queries of
/// A_h[t, i], reduced over the group and pooled over the tokens before the window.
class SnapKVScorer : public WindowScorer {
 public:
  /// window, pool, kernel, gqa, order.
  static std::vector<OptionSpec> options(const std::string& pool, Index kernel);

 protected:
  /// As WindowScorer's.
  SnapKVScorer(const Options& options, const std::string& who, const ScorerTraits& traits = {},
               WindowTokens tokens = WindowTokens::pinned);

  /// [kv_heads, C]; the window's own columns are not pooled.
  Matrix snapkv_scores(const LayerView& layer, ScoringKernels& kernels) const;
  /// The same with the window's tokens at the largest score of the layer plus one, as kvpress protects them.
  Matrix padded_scores(const LayerView& layer, ScoringKernels& kernels) const;
  /// The second where the window competes, else the first.
  Matrix base_scores(const LayerView& layer, ScoringKernels& kernels) const;

 private:
  bool pool_first_;
  GroupReduction group_;
};

}  // namespace laprox
