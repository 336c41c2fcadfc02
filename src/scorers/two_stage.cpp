#include "scorers/two_stage.h"

#include "scorers/groups.h"

namespace laprox {

CriticalScores critical_scores(Matrix base, double epsilon, Index group, ScoringKernels& kernels) {
  const Matrix norms = reduce_groups(kernels.value_l1_norms(), group, GroupReduction::mean);
  Matrix critical = (base.array() + epsilon) * norms.array();
  return {std::move(base), std::move(critical)};
}

std::vector<Index> two_stages(const Ranking& by_base, const Ranking& by_critical, Index first, Index count) {
  std::vector<Index> kept(by_base.begin(), by_base.begin() + first);
  std::vector<bool> taken(by_base.size());
  for (Index token : kept) taken[static_cast<std::size_t>(token)] = true;
  for (std::int32_t token : by_critical) {
    if (static_cast<Index>(kept.size()) == count) break;
    if (!taken[static_cast<std::size_t>(token)]) kept.push_back(token);
  }
  return kept;
}

}  // namespace laprox
