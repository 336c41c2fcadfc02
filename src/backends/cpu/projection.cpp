#include "backends/cpu/projection.h"

#include <algorithm>

#include "backends/cpu/product.h"
#include "base/parallel.h"

namespace laprox::cpu {

namespace {

constexpr Index kColumns = 4 * kPanel;  ///< of W_o per task
constexpr Index kDepth = 256;           ///< rows of W_o that are packed at a time

/// y [rows, kColumns] = x [rows, depth] W_o[:, first_column .. last_column)
void multiply_columns(const LayerTensors& layer, const float* x, Index rows, Index first_column, Index last_column,
                      float* y) {
  const Index depth = layer.geometry.query_heads * layer.geometry.value_size, model_size = layer.geometry.model_size;
  const float* w_o = layer.w_o.data<float>();
  Panels block(kDepth, last_column - first_column);
  for (Index k = 0; k < depth; k += kDepth) {
    const Index count = std::min(kDepth, depth - k);
    for (Index i = 0; i < count; ++i) block.set_row(i, w_o + (k + i) * model_size + first_column);
    multiply(rows, count, {x + k, depth, 1}, block, 0, block.count(), y, kColumns, k > 0);
  }
}

}  // namespace

Projected project(const LayerTensors& layer, const float* head_outputs, Index cells, Index queries, int threads) {
  const Index model_size = layer.geometry.model_size, rows = cells * queries;
  const Index blocks = (model_size + kColumns - 1) / kColumns;
  Projected projected{Matrix(queries, model_size), Matrix::Zero(cells, queries), Matrix::Zero(cells, queries)};
  Matrix squares(blocks, rows), products(blocks, rows);
  parallel_for(threads, blocks, [&](Index task) {
    const Index first = task * kColumns, columns = std::min(kColumns, model_size - first);
    Buffer<float> y(rows * kColumns);
    multiply_columns(layer, head_outputs, rows, first, first + columns, y.data());
    for (Index row = 0; row < rows; ++row) {
      const Index query = row % queries;
      double square = 0, product = 0;
      for (Index c = 0; c < columns; ++c) {
        const double value = y[row * kColumns + c];
        if (row < queries) {
          projected.exact(query, first + c) = value + (layer.bias.empty() ? 0.0 : layer.bias[first + c]);
        }
        square += value * value;
        product += value * projected.exact(query, first + c);
      }
      squares(task, row) = square;
      products(task, row) = product;
    }
  });
  for (Index row = 0; row < rows; ++row) {
    projected.squares(row / queries, row % queries) = squares.col(row).sum();
    projected.products(row / queries, row % queries) = products.col(row).sum();
  }
  return projected;
}

KeptSums project_kept(const LayerTensors& layer, const Buffer<float>& x, const std::vector<Index>& queries,
                      const Matrix& exact, int threads) {
  const Index model_size = layer.geometry.model_size, rows = static_cast<Index>(queries.size());
  const Index blocks = (model_size + kColumns - 1) / kColumns;
  Matrix squares(blocks, rows), products(blocks, rows);
  parallel_for(threads, blocks, [&](Index task) {
    const Index first = task * kColumns, columns = std::min(kColumns, model_size - first);
    Buffer<float> y(rows * kColumns);
    multiply_columns(layer, x.data(), rows, first, first + columns, y.data());
    for (Index row = 0; row < rows; ++row) {
      double square = 0, product = 0;
      for (Index c = 0; c < columns; ++c) {
        const double bias = layer.bias.empty() ? 0.0 : layer.bias[first + c];
        const double value = y[row * kColumns + c] + bias;
        square += value * value;
        product += value * exact(queries[row], first + c);
      }
      squares(task, row) = square;
      products(task, row) = product;
    }
  });
  KeptSums sums;
  for (Index row = 0; row < rows; ++row) {
    sums.squares.push_back(squares.col(row).sum());
    sums.products.push_back(products.col(row).sum());
  }
  return sums;
}

}  // namespace laprox::cpu
