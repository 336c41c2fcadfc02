#pragma once

#include <span>
#include <vector>

#include "laprox/tensor.h"

namespace laprox {

/// A rotation of channel pairs (j, j + r / 2), or a mean of several, which shrinks them: [r / 2] each.
struct Rotation {
  Eigen::VectorXd cos, sin;
};

/// RoPE's rotation at one position.
Rotation rotation_at(Index position, const std::vector<double>& inv_freq);
/// The mean of RoPE's rotations over the positions [first, first + count).
Rotation mean_rotation(Index first, Index count, const std::vector<double>& inv_freq);

/// Rotates every row of `rows` [n, d]; channels from r on stay.
void rotate_rows(Matrix& rows, const Rotation& rotation);

/// Rows of queries or keys [n, d] at their positions [n], as they were before RoPE.
Matrix before_rope(Matrix rows, std::span<const Index> positions, const std::vector<double>& inv_freq);

}  // namespace laprox
