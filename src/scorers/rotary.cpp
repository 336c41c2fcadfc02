#include "scorers/rotary.h"

#include <cmath>

namespace laprox {

Rotation rotation_at(Index position, const std::vector<double>& inv_freq) {
  const Index pairs = static_cast<Index>(inv_freq.size());
  Rotation rotation{Eigen::VectorXd(pairs), Eigen::VectorXd(pairs)};
  for (Index j = 0; j < pairs; ++j) {
    const double angle = static_cast<double>(position) * inv_freq[j];
    rotation.cos[j] = std::cos(angle);
    rotation.sin[j] = std::sin(angle);
  }
  return rotation;
}

Rotation mean_rotation(Index first, Index count, const std::vector<double>& inv_freq) {
  Rotation mean = rotation_at(first, inv_freq);
  for (Index position = first + 1; position < first + count; ++position) {
    const Rotation next = rotation_at(position, inv_freq);
    mean.cos += next.cos;
    mean.sin += next.sin;
  }
  mean.cos /= static_cast<double>(count);
  mean.sin /= static_cast<double>(count);
  return mean;
}

void rotate_rows(Matrix& rows, const Rotation& rotation) {
  const Index pairs = rotation.cos.size();
  const Matrix first = rows.leftCols(pairs), second = rows.middleCols(pairs, pairs);
  rows.leftCols(pairs) = first * rotation.cos.asDiagonal() - second * rotation.sin.asDiagonal();
  rows.middleCols(pairs, pairs) = second * rotation.cos.asDiagonal() + first * rotation.sin.asDiagonal();
}

Matrix before_rope(Matrix rows, std::span<const Index> positions, const std::vector<double>& inv_freq) {
  for (Index n = 0; n < rows.rows(); ++n) {
    Rotation back = rotation_at(positions[n], inv_freq);
    back.sin = -back.sin;
    Matrix row = rows.row(n);
    rotate_rows(row, back);
    rows.row(n) = row;
  }
  return rows;
}

}  // namespace laprox
