#include "allocators/layer_shares.h"

#include <algorithm>

#include "util/rounding.h"

namespace laprox {

bool same_heads_everywhere(const Candidates& candidates) {
  return std::all_of(candidates.scores.begin(), candidates.scores.end(),
                     [&](const auto& layer) { return layer.size() == candidates.scores[0].size(); });
}

HeadCounts uniform_within_layers(const std::vector<Index>& tokens, const Candidates& candidates) {
  HeadCounts counts;
  for (std::size_t layer = 0; layer < tokens.size(); ++layer) {
    counts.emplace_back(candidates.scores[layer].size(), tokens[layer] + candidates.pinned);
  }
  return counts;
}

HeadCounts spread_over_heads(const std::vector<double>& quotas, const Candidates& candidates, const Budget& budget) {
  double sum = 0;
  Index heads = 0;
  for (std::size_t layer = 0; layer < quotas.size(); ++layer) {
    sum += quotas[layer] * static_cast<double>(candidates.scores[layer].size());
    heads += static_cast<Index>(candidates.scores[layer].size());
  }
  const Index total = budget.pairs() - heads * candidates.pinned;
  std::vector<double> per_head;
  for (std::size_t layer = 0; layer < quotas.size(); ++layer) {
    const double quota = sum > 0 ? quotas[layer] * static_cast<double>(total) / sum
                                 : static_cast<double>(total) / static_cast<double>(heads);
    per_head.insert(per_head.end(), candidates.scores[layer].size(), quota);
  }
  const std::vector<Index> shares = largest_remainder(per_head, total, candidates.per_head());
  HeadCounts counts;
  auto next = shares.begin();
  for (const auto& layer : candidates.scores) {
    for (auto& count : counts.emplace_back(layer.size())) count = candidates.pinned + *next++;
  }
  return counts;
}

}  // namespace laprox
