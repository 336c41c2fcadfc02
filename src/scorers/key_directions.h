#pragma once

#include <vector>

#include "laprox/tensor.h"

namespace laprox {

/// KeyDiff's score (arXiv 2504.15364) of some tokens, ascending: -cos(k_i, mean of their keys' directions). `keys`: [C,
/// d].
std::vector<double> dissimilarity(const Matrix& keys, const std::vector<Index>& tokens);

}  // namespace laprox
