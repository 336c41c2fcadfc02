#pragma once

#include <string>
#include <vector>

#include "laprox/layer.h"

namespace laprox {

/// The scores of one policy: per layer [kv_heads, context tokens], higher is kept. Finite, and independent of the
/// budget. What must always be kept is said by Pins, never by a large score.
using ScoreTable = std::vector<Matrix>;

/// Throws BackendError naming the layer, head and token of the first score that is not finite.
void check_finite(const Matrix& scores, const LayerView& layer, const std::string& who);

}  // namespace laprox
