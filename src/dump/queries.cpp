#include "dump/queries.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "laprox/error.h"

namespace laprox {

namespace {

QueryBlock copy(const Tensor& q, const std::vector<Index>& positions, const std::vector<double>& residual_norms,
                Index first, Index count) {
  const Index heads = q.shape()[0], queries = q.shape()[1], size = q.shape()[2], row = size * size_of(q.type());
  require(first >= 0 && count >= 0 && first + count <= queries, "queries that are there");
  QueryBlock block{q.memory() ? q.device_part(1, first, count) : Tensor(q.type(), {heads, count, size}), {}};
  for (Index head = 0; head < heads && count > 0 && !q.memory(); ++head) {
    std::memcpy(block.q.raw() + head * count * row, q.raw() + (head * queries + first) * row,
                static_cast<std::size_t>(count * row));
  }
  block.positions.assign(positions.begin() + first, positions.begin() + first + count);
  if (!residual_norms.empty()) {
    block.residual_norms.assign(residual_norms.begin() + first, residual_norms.begin() + first + count);
  }
  return block;
}

}  // namespace

QueryBlock copy_queries(const LayerTensors& layer, Index first, Index count) {
  return copy(layer.q, layer.query_positions, layer.residual_norms, first, count);
}

QueryBlock part_of(const QueryBlock& block, Index first, Index count) {
  return copy(block.q, block.positions, block.residual_norms, first, count);
}

QueryBlock take_queries(LayerTensors& layer) {
  return {std::move(layer.q), std::move(layer.query_positions), std::move(layer.residual_norms)};
}

QueryBlock copy_queries_at(const LayerTensors& layer, const std::vector<Index>& positions) {
  const LayerGeometry& g = layer.geometry;
  const auto count = static_cast<Index>(positions.size());
  QueryBlock block{Tensor(layer.q.type(), {g.query_heads, count, g.head_size}), positions};
  const Index size = g.head_size * size_of(layer.q.type());
  for (Index n = 0; n < count; ++n) {
    const auto found = std::lower_bound(layer.query_positions.begin(), layer.query_positions.end(), positions[n]);
    require(found != layer.query_positions.end() && *found == positions[n], "queries that the layer holds");
    const Index row = found - layer.query_positions.begin();
    if (!layer.residual_norms.empty()) block.residual_norms.push_back(layer.residual_norms[row]);
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
