#include "backends/cpu/quadratic_form.h"

#include <algorithm>
#include <vector>

namespace laprox::cpu {

namespace {

constexpr Index kRowBlock = 240;

/// W_O^h [d_v, D].
auto output_block(const LayerTensors& layer, Index head) {
  const Index rows = layer.geometry.value_size;
  return layer.w_o.matrix<float>().middleRows(head * rows, rows);
}

}  // namespace

FloatMatrix gram(const LayerTensors& layer, Index a, Index b) {
  const auto left = output_block(layer, a), right = output_block(layer, b);
  if (a != b) return left * right.transpose();
  FloatMatrix upper = FloatMatrix::Zero(left.rows(), left.rows());
  upper.selfadjointView<Eigen::Upper>().rankUpdate(left);
  return upper.selfadjointView<Eigen::Upper>();
}

QuadraticForm::QuadraticForm(const FloatMatrix& gram) : triangle_(gram.rows(), gram.cols()) {
  for (Index i = 0; i < gram.rows(); ++i) {
    std::vector<float> row(static_cast<std::size_t>(gram.cols()), 0.0F);
    for (Index j = i; j < gram.cols(); ++j) {
      row[j] = i == j ? gram(i, i) : gram(i, j) + gram(j, i);
    }
    triangle_.set_row(i, row.data());
  }
}

void QuadraticForm::evaluate(const float* x, Index count, double* values) const {
  const Index size = triangle_.depth();
  Buffer<float> products(kRowBlock * kPanel);
  for (Index first = 0; first < count; first += kRowBlock) {
    const Index rows = std::min(kRowBlock, count - first);
    std::fill_n(values + first, rows, 0.0);
    for (Index p = 0; p < triangle_.count(); ++p) {
      const Index begin = p * kPanel, end = std::min(size, begin + kPanel);
      multiply(rows, end, {x + first * size, size, 1}, triangle_, p, p + 1, products.data(), kPanel);
      for (Index row = 0; row < rows; ++row) {
        const float* row_products = products.data() + row * kPanel;
        const float* row_x = x + (first + row) * size + begin;
        float sum = 0;
        for (Index j = 0; j < end - begin; ++j) sum += row_products[j] * row_x[j];
        values[first + row] += sum;
      }
    }
  }
}

}  // namespace laprox::cpu
