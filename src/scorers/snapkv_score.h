#pragma once

#include <string>

#include "laprox/scorer.h"
#include "scorers/groups.h"
#include "scorers/pooling.h"

namespace laprox {

/// SnapKV's score (arXiv 2404.14469), which several methods build on: the mean over the window's queries of A_h[t, i],
/// reduced over the group and pooled over the tokens before the window.
class SnapKVScore {
 public:
  /// window, pool, kernel, gqa, order.
  static std::vector<OptionSpec> options(const std::string& pool, Index kernel);
  /// Throws UsageError, naming `who`, on an even kernel.
  SnapKVScore(const Options& options, const std::string& who);

  Index window() const { return window_; }
  /// [kv_heads, C]; the window's own columns are not pooled.
  Matrix of(const LayerView& layer, ScoringKernels& kernels) const;
  /// The same with the window's tokens at the largest score of the layer plus one, as kvpress protects them.
  Matrix padded(const LayerView& layer, ScoringKernels& kernels) const;

 private:
  Index window_, kernel_;
  Pool pool_;
  bool pool_first_;
  GroupReduction group_;
};

}  // namespace laprox
