#include "allocators/ada_split.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "allocators/rounding.h"
#include "allocators/top_k.h"

namespace laprox {

namespace {

/// What a head's scores are divided by while heads compete: (sum of all) / (sum of the best `share`).
double divisor_of(const std::vector<double>& scores, Index share) {
  const auto best = scores.begin() + std::min<Index>(share, static_cast<Index>(scores.size()));
  const double most = std::accumulate(scores.begin(), best, 0.0), all = std::accumulate(best, scores.end(), most);
  return most > 0 && all > 0 ? all / most : 1;
}

}  // namespace

std::vector<Index> split_over_heads(const std::vector<std::vector<double>>& lists, Index total, Index guaranteed,
                                    const AdaSplit& how) {
  const Index heads = static_cast<Index>(lists.size()), cap = static_cast<Index>(lists[0].size());
  std::vector<ScoreList> competing;
  for (const auto& scores : lists) {
    competing.push_back({scores, how.normalize ? divisor_of(scores, total / heads) : 1});
  }
  std::vector<double> quotas;
  for (Index won : top_k_counts(competing, total)) {
    quotas.push_back(static_cast<double>(won) * (1 - how.floor) + static_cast<double>(guaranteed));
  }
  if (how.exact) return largest_remainder(quotas, total, cap);
  std::vector<Index> counts;
  for (double quota : quotas) counts.push_back(std::min(cap, static_cast<Index>(std::nearbyint(quota))));
  return counts;
}

}  // namespace laprox
