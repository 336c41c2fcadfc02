#pragma once

#include "backends/cpu/product.h"
#include "laprox/layer.h"

namespace laprox::cpu {

using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// G = W^a (W^b)^T [d_v, d_v] of two query heads' blocks of W_o.
FloatMatrix gram(const LayerTensors& layer, Index a, Index b);

/// x G x^T for a Gram matrix G, as sum_j x_j sum_{i <= j} x_i U_ij with the triangle U_ij = G_ij + G_ji, U_jj = G_jj:
/// panel p of U ends at row kPanel * (p + 1), which saves up to half of the products.
class QuadraticForm {
 public:
  explicit QuadraticForm(const FloatMatrix& gram);

  /// Values of the form at `count` rows of x [count, size], row-major.
  void evaluate(const float* x, Index count, double* values) const;

 private:
  Panels triangle_;
};

}  // namespace laprox::cpu
