#include "dump/queries.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "laprox/error.h"

namespace laprox {

QueryBlock copy_queries(const LayerTensors& layer, Index first, Index count) {
  require(first >= 0 && count >= 0 && first + count <= layer.queries(), "queries that the layer holds");
  const LayerGeometry& g = layer.geometry;
  QueryBlock block{Tensor(layer.q.type(), {g.query_heads, count, g.head_size}), {}};
  const Index row = g.head_size * size_of(layer.q.type());
  for (Index head = 0; head < g.query_heads && count > 0; ++head) {
    std::memcpy(block.q.raw() + head * count * row, layer.q.raw() + (head * layer.queries() + first) * row,
                static_cast<std::size_t>(count * row));
  }
  block.positions.assign(layer.query_positions.begin() + first, layer.query_positions.begin() + first + count);
  if (!layer.residual_norms.empty()) {
    const auto norms = layer.residual_norms.begin() + first;
    block.residual_norms.assign(norms, norms + count);
  }
  return block;
}

QueryBlock copy_queries_at(const LayerTensors& layer, const std::vector<Index>& positions) {
  const LayerGeometry& g = layer.geometry;
  const auto count = static_cast<Index>(positions.size());
  QueryBlock block{Tensor(layer.q.type(), {g.query_heads, count, g.head_size}), positions};
  const Index size = g.head_size * size_of(layer.q.type());
  for (Index n = 0; n < count; ++n) {
    const auto found = std::lower_bound(layer.query_positions.begin(), layer.query_positions.end(),
                                        positions[static_cast<std::size_t>(n)]);
    require(found != layer.query_positions.end() && *found == positions[static_cast<std::size_t>(n)],
            "queries that the layer holds");
    const Index row = found - layer.query_positions.begin();
    if (!layer.residual_norms.empty())
      block.residual_norms.push_back(layer.residual_norms[static_cast<std::size_t>(row)]);
    for (Index head = 0; head < g.query_heads; ++head) {
      std::memcpy(block.q.raw() + (head * count + n) * size, layer.q.raw() + (head * layer.queries() + row) * size,
                  static_cast<std::size_t>(size));
    }
  }
  return block;
}

void set_queries(LayerTensors& layer, QueryBlock block) {
  layer.q = std::move(block.q);
  layer.query_positions = std::move(block.positions);
  layer.residual_norms = std::move(block.residual_norms);
}

}  // namespace laprox
