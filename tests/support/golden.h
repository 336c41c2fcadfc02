#pragma once

#include <string>
#include <vector>

#include "support/layers.h"

namespace laprox::testing {

using Tokens = std::vector<int>;

/// Both layers of the worked examples' fixture.
std::vector<LayerTensors> fixture(const Backend& backend);

/// Scores [kv_heads, C] of one fixture layer, at `budget` tokens per head where they depend on it.
Matrix score(const std::string& policy, Index layer, const Backend& backend, Index budget = 4);

/// Compares one head's scores with an example's, which is printed with four decimals.
void check_row(const Matrix& scores, Index row, const std::vector<double>& expected);

/// Compares what the fixture's heads keep, layer after layer, on both backends.
void check_kept(const std::string& policy, const std::vector<Tokens>& expected, Index budget = 4);

}  // namespace laprox::testing
