#pragma once

#include <vector>

#include "laprox/tensor.h"

namespace laprox {

/// Integers near `quotas` that add up to `total`, none above `cap`: every quota is rounded down, then the rest goes one
/// by one to the largest fractional parts (ties: lower index), again and again while any is left. Requires 0 <= total
/// <= cap * quotas.size().
std::vector<Index> largest_remainder(const std::vector<double>& quotas, Index total, Index cap);

/// The same with a cap for each.
std::vector<Index> largest_remainder(const std::vector<double>& quotas, Index total, const std::vector<Index>& caps);

}  // namespace laprox
