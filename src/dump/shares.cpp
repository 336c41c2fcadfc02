#include "laprox/shares.h"

#include <algorithm>

namespace laprox {

namespace {

/// Layers that one rank takes as a whole.
struct Piece {
  std::size_t dump;
  std::vector<std::size_t> layers;
  Index size = 0;  ///< stored numbers
};

Index stored_numbers(const DumpInfo& dump, const LayerSummary& layer) {
  const LayerGeometry& g = layer.geometry;
  const auto queries = static_cast<Index>(dump.query_positions.size());
  return queries * g.query_heads * g.head_size + dump.tokens * g.kv_heads * (g.head_size + g.value_size) +
         g.query_heads * g.value_size * g.model_size;
}

/// A piece for each cache, in the order of the layers that own them.
std::vector<Piece> pieces_of(const DumpInfo& dump, std::size_t index) {
  std::vector<Piece> pieces;
  std::vector<std::size_t> piece_of(dump.layers.size());
  for (std::size_t layer = 0; layer < dump.layers.size(); ++layer) {
    const Index source = dump.layers[layer].kv_source;
    if (source < 0) pieces.push_back({index, {}});
    piece_of[layer] = source < 0 ? pieces.size() - 1 : piece_of[source];
    pieces[piece_of[layer]].layers.push_back(layer);
    pieces[piece_of[layer]].size += stored_numbers(dump, dump.layers[layer]);
  }
  return pieces;
}

}  // namespace

std::vector<std::vector<Index>> share_layers(const std::vector<const DumpInfo*>& dumps, Index ranks) {
  std::vector<std::vector<Index>> rank_of;
  std::vector<Piece> pieces;
  for (std::size_t d = 0; d < dumps.size(); ++d) {
    rank_of.emplace_back(dumps[d]->layers.size());
    for (Piece& piece : pieces_of(*dumps[d], d)) pieces.push_back(std::move(piece));
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.size > b.size; });
  std::vector<Index> load(static_cast<std::size_t>(ranks), 0);
  for (const Piece& piece : pieces) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += piece.size;
    for (const std::size_t layer : piece.layers) rank_of[piece.dump][layer] = least - load.begin();
  }
  return rank_of;
}

std::vector<Index> layers_of(const std::vector<Index>& rank_of, Index rank) {
  std::vector<Index> layers;
  for (std::size_t layer = 0; layer < rank_of.size(); ++layer) {
    if (rank_of[layer] == rank) layers.push_back(static_cast<Index>(layer));
  }
  return layers;
}

std::vector<std::size_t> group_dumps(const std::vector<const DumpInfo*>& dumps, Index ranks) {
  if (ranks == 1) return std::vector<std::size_t>(dumps.size(), 1);
  const auto wanted = 4 * static_cast<std::size_t>(ranks);
  std::vector<std::size_t> groups;
  std::size_t pieces = wanted;
  for (const DumpInfo* dump : dumps) {
    if (pieces >= wanted) groups.push_back(0), pieces = 0;
    ++groups.back();
    pieces += pieces_of(*dump, 0).size();
  }
  return groups;
}

}  // namespace laprox
