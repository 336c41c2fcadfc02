#pragma once

#include <vector>

#include "laprox/layer.h"

namespace laprox {

/// Some of a layer's stored queries.
struct QueryBlock {
  Tensor q;  ///< [H_q, count, d]
  std::vector<Index> positions;
  std::vector<double> residual_norms = {};  ///< of these queries; empty where the layer has none
};

/// A copy of the stored queries [first, first + count).
QueryBlock copy_queries(const LayerTensors& layer, Index first, Index count);
/// A copy of the stored queries at these positions, ascending; the layer holds all of them.
QueryBlock copy_queries_at(const LayerTensors& layer, const std::vector<Index>& positions);
/// Queries [first, first + count) of a block.
QueryBlock part_of(const QueryBlock& block, Index first, Index count);
/// Takes the layer's stored queries out of it.
QueryBlock take_queries(LayerTensors& layer);
/// Replaces the layer's stored queries.
void set_queries(LayerTensors& layer, QueryBlock block);

}  // namespace laprox
