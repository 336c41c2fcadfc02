#pragma once

#include "laprox/tensor.h"

namespace laprox {

// KeyDiff's score (arXiv 2504.15364), -cos(k_i, mean of the directions k_j / ||k_j||), in two steps, so that keys may
// come in blocks. `keys`: [n, d].

/// The sum of the keys' directions: [d].
Eigen::RowVectorXd summed_directions(const Matrix& keys);
/// -cos(k_i, anchor) of every key: [n].
Eigen::RowVectorXd dissimilarity_to(const Eigen::RowVectorXd& anchor, const Matrix& keys);
/// Both steps, for keys that are compared with one another alone.
Eigen::RowVectorXd dissimilarity(const Matrix& keys);

}  // namespace laprox
