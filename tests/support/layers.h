#pragma once

#include <cstdint>
#include <vector>

#include "laprox/backend.h"
#include "laprox/policy.h"
#include "laprox/sweep.h"

namespace laprox::testing {

/// What a random layer looks like.
struct LayerShape {
  LayerGeometry geometry{4, 2, 8, 8, 16};
  Index context = 24, decoded = 5;
  AttentionForm attention{.scale = 0.35};
  bool bias = false;
  bool rope = true;      ///< says how queries were rotated
  bool residual = true;  ///< has the residual stream's norms
  double spread = 1;     ///< of the queries: larger ones make attention sharper
};

/// A seeded random layer in float64 with all its queries.
LayerTensors random_layer(const LayerShape& shape, unsigned seed);

/// The same layer with the queries at positions in [begin, end) only, in the given element type.
LayerTensors with_queries(const LayerTensors& layer, Index begin, Index end, ElementType type);

/// Shapes that cover groups, sizes and model features.
std::vector<LayerShape> varied_shapes();

/// A layer of the fixture that the policies' worked examples are computed on: 6 prompt tokens, 2 KV heads, groups of 2,
/// d = 2, D = 4; every value is an integer hash of its place.
LayerTensors fixture_layer(Index layer, ElementType type);

/// The fixture whose queries were rotated by RoPE: taken back, they are the fixture's own.
LayerTensors rotated_fixture_layer(Index layer, ElementType type);

/// What a policy keeps on some layers at tokens-per-head budgets.
struct Kept : Selection {
  /// Ascending kept tokens of one head.
  std::vector<int> tokens(std::size_t budget, std::size_t layer, std::size_t head) const;
};
Kept keep(const Policy& policy, const std::vector<LayerTensors>& prompts, const std::vector<Index>& budgets,
          const Backend& backend);

/// The reference and the backend that a test program is about, in this order: cpu, or cuda in tests/gpu.
std::vector<std::unique_ptr<Backend>> backends();

}  // namespace laprox::testing
