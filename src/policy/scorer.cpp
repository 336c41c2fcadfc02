#include "laprox/scorer.h"

#include <algorithm>

#include "laprox/error.h"

namespace laprox {

Matrix Scorer::score(const LayerView&, ScoringKernels&) const {
  throw Bug("a scorer whose scores depend on the budget was asked for scores without one");
}

std::vector<Matrix> Scorer::score_each(std::span<const Index>, const LayerView&, ScoringKernels&) const {
  throw Bug("a scorer whose scores serve every budget was asked for scores per budget");
}

double Scorer::preference(const LayerView&, ScoringKernels&) const {
  throw Bug("a scorer without a layer preference was asked for one");
}

std::vector<std::int32_t> Scorer::evict(std::span<const double> scores, Index count) const {
  const Ranking ranking = rank(scores);
  std::vector<std::int32_t> evicted(ranking.begin() + count, ranking.end());
  std::sort(evicted.begin(), evicted.end());
  return evicted;
}

std::vector<double> Scorer::score_sums(const Matrix&) const {
  throw Bug("a scorer that does not sum attention while decoding was asked for scores of sums");
}

Index Scorer::spends(Index tokens, Index, const Ranking&) const { return tokens; }

}  // namespace laprox
