#pragma once

#include <algorithm>

#include "laprox/error.h"
#include "laprox/layer.h"

namespace laprox {

/// How many of the last prompt queries far energies are summed over: `queries`, or all of them where that is 0. The
/// layer stores these, and no others behind them.
inline Index far_queries(const LayerTensors& layer, Index queries) {
  const Index count = queries > 0 ? std::min(queries, layer.context_length) : layer.context_length;
  require(count <= layer.queries(), "the layer was read with the queries that far energies need");
  return count;
}

}  // namespace laprox
