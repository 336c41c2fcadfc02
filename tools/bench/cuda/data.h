#pragma once

#include "laprox/layer.h"

namespace laprox::bench {

/// A random layer of llama-3.1-8b's shape (32 query heads, 8 KV heads, d 128, D 4096) in bfloat16, and the same numbers
/// in float64 for the reference. It stores the last `queries` queries.
struct BenchLayer {
  LayerTensors half, exact;
};
BenchLayer make_layer(Index tokens, Index queries);

}  // namespace laprox::bench
