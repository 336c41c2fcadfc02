#include "allocators/layer_shares.h"

#include <algorithm>

#include "allocators/rounding.h"

namespace laprox {

bool same_heads_everywhere(const Contest& contest) {
  return std::all_of(contest.scores.begin(), contest.scores.end(),
                     [&](const auto& layer) { return layer.size() == contest.scores[0].size(); });
}

HeadCounts uniform_within_layers(const std::vector<Index>& tokens, const Contest& contest) {
  HeadCounts counts;
  for (std::size_t layer = 0; layer < tokens.size(); ++layer) {
    counts.emplace_back(contest.scores[layer].size(), tokens[layer] + contest.pinned);
  }
  return counts;
}

HeadCounts spread_over_heads(const std::vector<double>& quotas, const Contest& contest, const Budget& budget) {
  double sum = 0;
  Index heads = 0;
  for (std::size_t layer = 0; layer < quotas.size(); ++layer) {
    sum += quotas[layer] * static_cast<double>(contest.scores[layer].size());
    heads += static_cast<Index>(contest.scores[layer].size());
  }
  const Index total = budget.pairs() - heads * contest.pinned;
  std::vector<double> per_head;
  for (std::size_t layer = 0; layer < quotas.size(); ++layer) {
    const double quota = sum > 0 ? quotas[layer] * static_cast<double>(total) / sum
                                 : static_cast<double>(total) / static_cast<double>(heads);
    per_head.insert(per_head.end(), contest.scores[layer].size(), quota);
  }
  const std::vector<Index> shares = largest_remainder(per_head, total, contest.per_head());
  HeadCounts counts;
  auto next = shares.begin();
  for (const auto& layer : contest.scores) {
    for (auto& count : counts.emplace_back(layer.size())) count = contest.pinned + *next++;
  }
  return counts;
}

}  // namespace laprox
