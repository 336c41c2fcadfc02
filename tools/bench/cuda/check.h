#pragma once

#include "laprox/layer.h"

namespace laprox::bench {

/// The largest difference of LaProx scores [kv_heads, C] from the float64 reference's, relative to the reference's
/// largest score, at every 61st token and at all of the window.
double laprox_error(const LayerTensors& exact, const Matrix& scores, Index window, Index kernel);

/// The same of H2O's column sums [query_heads, C] for some query heads, at all tokens.
double column_sum_error(const LayerTensors& exact, const Matrix& sums);

}  // namespace laprox::bench
