#include <cmath>

#include "backends/cpu/product.h"
#include "backends/cpu/scoring.h"
#include "base/parallel.h"

namespace laprox::cpu {

namespace {

constexpr Index kTokenBlock = 240;

using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// x G x^T for a Gram matrix G, as sum_j x_j sum_{i <= j} x_i U_ij with the triangle U_ij = G_ij + G_ji, U_jj = G_jj:
/// panel p of U ends at row kPanel * (p + 1), which saves up to half of the products.
class QuadraticForm {
 public:
  explicit QuadraticForm(const FloatMatrix& gram) : triangle_(gram.rows(), gram.cols()) {
    for (Index i = 0; i < gram.rows(); ++i) {
      std::vector<float> row(static_cast<std::size_t>(gram.cols()), 0.0F);
      for (Index j = i; j < gram.cols(); ++j) {
        row[static_cast<std::size_t>(j)] = i == j ? gram(i, i) : gram(i, j) + gram(j, i);
      }
      triangle_.set_row(i, row.data());
    }
  }

  /// Values of the form at `count` rows of x [count, size], row-major.
  void evaluate(const float* x, Index count, double* values) const {
    const Index size = triangle_.depth();
    Buffer<float> products(kTokenBlock * kPanel);
    for (Index first = 0; first < count; first += kTokenBlock) {
      const Index rows = std::min(kTokenBlock, count - first);
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

 private:
  Panels triangle_;
};

/// W_O^h [d_v, D].
auto output_block(const LayerTensors& layer, Index head) {
  const Index rows = layer.geometry.value_size;
  return layer.w_o.matrix<float>().middleRows(head * rows, rows);
}

/// G = W^a (W^b)^T [d_v, d_v]; where a == b only its upper triangle, which is all that a form of a symmetric matrix
/// needs.
FloatMatrix gram(const LayerTensors& layer, Index a, Index b) {
  const auto left = output_block(layer, a), right = output_block(layer, b);
  if (a != b) return left * right.transpose();
  FloatMatrix upper = FloatMatrix::Zero(left.rows(), left.rows());
  upper.selfadjointView<Eigen::Upper>().rankUpdate(left);
  return upper.selfadjointView<Eigen::Upper>();
}

/// The form of W^a (W^b)^T at every context token's value: <v_i W^a, v_i W^b>.
void value_form(const LayerTensors& layer, Index a, Index b, double* out) {
  const Index kv_head = a / layer.geometry.group();
  const float* values = layer.v.data<float>() + kv_head * layer.tokens * layer.geometry.value_size;
  QuadraticForm(gram(layer, a, b)).evaluate(values, layer.context_length, out);
}

}  // namespace

Matrix value_norms(const LayerTensors& layer, int threads) {
  Matrix norms(layer.geometry.query_heads, layer.context_length);
  parallel_for(threads, layer.geometry.query_heads, [&](Index head) {
    value_form(layer, head, head, &norms(head, 0));
    norms.row(head) = norms.row(head).cwiseMax(0.0).cwiseSqrt().eval();
  });
  return norms;
}

Matrix value_l1_norms(const LayerTensors& layer, int threads) {
  const LayerGeometry& g = layer.geometry;
  Matrix norms(g.query_heads, layer.context_length);
  parallel_for(threads, g.query_heads, [&](Index head) {
    Panels block(g.value_size, g.model_size);
    for (Index k = 0; k < g.value_size; ++k) block.set_row(k, output_block(layer, head).row(k).data());
    const float* values = layer.v.data<float>() + head / g.group() * layer.tokens * g.value_size;
    Buffer<float> products(kTokenBlock * kPanel);
    for (Index first = 0; first < layer.context_length; first += kTokenBlock) {
      const Index rows = std::min(kTokenBlock, layer.context_length - first);
      norms.row(head).segment(first, rows).setZero();
      for (Index p = 0; p < block.count(); ++p) {  // padding columns are zero, and add nothing
        multiply(rows, g.value_size, {values + first * g.value_size, g.value_size, 1}, block, p, p + 1, products.data(),
                 kPanel);
        for (Index row = 0; row < rows; ++row) {
          Lanes sums{};
          for (Index j = 0; j < kPanel; j += kLanes) {
            const Lanes x = load(products.data() + row * kPanel + j);
            sums += max(x, -x);
          }
          norms(head, first + row) += sum(sums);
        }
      }
    }
  });
  return norms;
}

Matrix value_products(const LayerTensors& layer, int threads) {
  const Index group = layer.geometry.group();
  Matrix products(layer.geometry.kv_heads * group * group, layer.context_length);
  parallel_for(threads, layer.geometry.query_heads, [&](Index a) {
    const Index kv_head = a / group, row = a * group;
    for (Index b = a % group; b < group; ++b) {
      value_form(layer, a, kv_head * group + b, &products(row + b, 0));
    }
  });
  // <v W^a, v W^b> = <v W^b, v W^a>: the lower triangle is the upper one.
  for (Index a = 0; a < layer.geometry.query_heads; ++a) {
    for (Index b = 0; b < a % group; ++b) {
      products.row(a * group + b) = products.row((a / group * group + b) * group + a % group);
    }
  }
  return products;
}

}  // namespace laprox::cpu
