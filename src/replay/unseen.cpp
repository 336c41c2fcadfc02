#include "replay/unseen.h"

#include <algorithm>

#include "replay/selection.h"

namespace laprox {

std::vector<Index> unseen_tokens(const DumpInfo& dump, const SweepOptions& options) {
  // Decoding goes on at context_length whether or not that query is stored; judging on the window begins earlier.
  const DumpInfo::Rows judging = judging_rows(dump, options);
  const Index judge = dump.query_positions[judging.first];
  const Index first = std::min(judge, dump.context_length);
  std::vector<Index> unseen;
  for (const LayerSummary& layer : dump.layers) {
    const Index own = layer.attention.first_visible(first);
    unseen.push_back(own);
    if (layer.kv_source >= 0) {
      Index& cache = unseen[layer.kv_source];
      cache = std::min(cache, own);
    }
  }
  for (std::size_t n = 0; n < unseen.size(); ++n) {
    const Index source = dump.layers[n].kv_source;
    if (source >= 0) unseen[n] = unseen[source];
  }
  return unseen;
}

std::vector<Index> unseen_entries(const Selection& selection, std::size_t budget, const std::vector<Index>& unseen) {
  std::vector<Index> entries(unseen.size(), 0);
  for (std::size_t layer = 0; layer < unseen.size(); ++layer) {
    if (unseen[layer] == 0) continue;
    const std::vector<Ranking>& rankings = selection.rankings(budget)[layer];
    for (std::size_t head = 0; head < rankings.size(); ++head) {
      const auto first = rankings[head].begin();
      entries[layer] += std::count_if(first, first + selection.counts[budget][layer][head],
                                      [&](Index token) { return token < unseen[layer]; });
    }
  }
  return entries;
}

}  // namespace laprox
