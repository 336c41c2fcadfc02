#include <cmath>

#include "backends/cpu/group_removal.h"

namespace laprox::cpu {

namespace {

/// A joint square that is smaller than this share of what its heads' terms could add up to is summed over W_o itself:
/// the Gram matrices are float32 sums.
constexpr double kCancelled = 1.0 / 32;

}  // namespace

GroupNorm::GroupNorm(const LayerTensors& layer, Index kv_head, const std::vector<FloatMatrix>& grams, bool joint)
    : layer_(layer),
      kv_head_(kv_head),
      group_(layer.geometry.group()),
      size_(layer.geometry.value_size),
      joint_(joint),
      gram_(Matrix::Zero(group_ * size_, group_ * size_)) {
  for (Index a = 0; a < group_; ++a) {
    for (Index b = 0; b < group_; ++b) {
      if (a != b && !joint) continue;
      gram_.block(a * size_, b * size_, size_, size_) = grams[a * group_ + b].cast<double>();
    }
  }
}

Eigen::VectorXd GroupNorm::squares(const Matrix& x) const {
  Eigen::VectorXd squares = (x * gram_).cwiseProduct(x).rowwise().sum();
  if (!joint_ || group_ == 1) return squares;
  for (Index row = 0; row < x.rows(); ++row) {
    double norms = 0;
    for (Index a = 0; a < group_; ++a) {
      const auto own = x.row(row).segment(a * size_, size_);
      norms += std::sqrt(std::max(0.0, (own * gram_.block(a * size_, a * size_, size_, size_)).dot(own)));
    }
    if (squares[row] < kCancelled * norms * norms) squares[row] = direct_square(x.row(row));
  }
  return squares;
}

double GroupNorm::direct_square(const Eigen::RowVectorXd& x) const {
  const auto w_o = layer_.w_o.matrix<float>();
  Eigen::RowVectorXd moved = Eigen::RowVectorXd::Zero(w_o.cols());
  for (Index k = 0; k < x.size(); ++k) moved += x[k] * w_o.row(kv_head_ * group_ * size_ + k).cast<double>();
  return moved.squaredNorm();
}

}  // namespace laprox::cpu
