#pragma once

#include "laprox/options.h"
#include "laprox/tensor.h"

namespace laprox {

/// The rule of kvpress's ChunkPress and of FINCH's chunks: a context of C tokens is cut into chunks, and at a budget of
/// b tokens each chunk of n keeps its own best int(n * b / C), at least one.
class ChunkShares {
 public:
  /// The option quota: whether what rounding down leaves is spent.
  static OptionSpec quota_option();

  /// `chunk`: tokens per chunk; the context's last one may have fewer.
  explicit ChunkShares(Index chunk) : chunk_(chunk) {}

  /// Scores [heads, C] as places: tokens in the order in which chunks let them in as the budget grows, the r-th best of
  /// a chunk of n at b / C = r / n and every chunk's best at once. So one order serves every budget, and the published
  /// set is a prefix of it; ties go to the lower token.
  Matrix places(const Matrix& scores) const;

  /// Tokens that the published rule keeps at a budget of `tokens`.
  Index spends(Index tokens, Index context) const;

 private:
  Index chunk_;
};

}  // namespace laprox
