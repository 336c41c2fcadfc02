#include "scorers/chunk_shares.h"

#include <algorithm>

#include "laprox/ranking.h"

namespace laprox {

OptionSpec ChunkShares::quota_option() {
  return OptionSpec::choice("quota", "exact", {"exact", "kvpress"},
                            "whether the budget is spent, or each chunk's share of it rounded down");
}

Matrix ChunkShares::places(const Matrix& scores) const {
  Matrix places(scores.rows(), scores.cols());
  for (Index head = 0; head < scores.rows(); ++head) {
    for (Index first = 0; first < scores.cols(); first += chunk_) {
      const Index size = std::min(chunk_, scores.cols() - first);
      const Ranking best = rank_by_score({&scores(head, first), static_cast<std::size_t>(size)}, {});
      for (Index n = 0; n < size; ++n) {
        const double share = n == 0 ? 0 : static_cast<double>(n + 1) / static_cast<double>(size);
        places(head, first + best[n]) = 1 - share;
      }
    }
  }
  return places;
}

Index ChunkShares::spends(Index tokens, Index context) const {
  Index kept = 0;
  for (Index first = 0; first < context; first += chunk_) {
    kept += std::max<Index>(1, std::min(chunk_, context - first) * tokens / context);
  }
  return kept;
}

}  // namespace laprox
