#include "laprox/scorer.h"

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

Index Scorer::spends(Index tokens, Index, const Ranking&) const { return tokens; }

}  // namespace laprox
