#include "backends/cpu/product.h"

#include <algorithm>
#include <array>
#include <utility>

namespace laprox::cpu {

namespace {

/// `Rows` rows of C in one panel: 2 * Rows accumulators stay in registers over the whole depth.
template <int Rows>
void tile(Index depth, LeftFactor a, const float* b, float* c, Index c_stride, bool accumulate) {
  Lanes sums[Rows][2];
#pragma GCC unroll 12
  for (int row = 0; row < Rows; ++row) {
    sums[row][0] = accumulate ? load(c + row * c_stride) : Lanes{};
    sums[row][1] = accumulate ? load(c + row * c_stride + kLanes) : Lanes{};
  }
  for (Index k = 0; k < depth; ++k) {
    const Lanes b0 = load(b + k * kPanel), b1 = load(b + k * kPanel + kLanes);
    const float* column = a.data + k * a.depth_stride;
#pragma GCC unroll 12
    for (int row = 0; row < Rows; ++row) {
      const Lanes value = broadcast(column[row * a.row_stride]);
      sums[row][0] += value * b0;
      sums[row][1] += value * b1;
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < Rows; ++row) {
    store(c + row * c_stride, sums[row][0]);
    store(c + row * c_stride + kLanes, sums[row][1]);
  }
}

using Tile = void (*)(Index, LeftFactor, const float*, float*, Index, bool);

/// kTiles[n - 1] computes n rows.
constexpr auto kTiles = []<int... I>(std::integer_sequence<int, I...>) {
  return std::array<Tile, sizeof...(I)>{&tile<I + 1>...};
}
(std::make_integer_sequence<int, kTile>{});

/// Rows of A that are taken through all panels before the next ones: they stay in the second-level cache.
constexpr Index kRowBlock = 8 * kTile;

}  // namespace

void Panels::set_row(Index k, const float* values) {
  for (Index p = 0; p < count(); ++p) {
    float* row = panel(p) + k * kPanel;
    const Index width = std::min(kPanel, columns_ - p * kPanel);
    std::copy_n(values + p * kPanel, width, row);
    std::fill(row + width, row + kPanel, 0.0F);
  }
}

void Panels::set_panel_transposed(Index p, const float* source, Index row_stride, float factor) {
  float* target = panel(p);
  const Index width = std::min(kPanel, columns_ - p * kPanel);
  for (Index n = 0; n < width; ++n) {
    const float* row = source + (p * kPanel + n) * row_stride;
    for (Index k = 0; k < depth_; ++k) target[k * kPanel + n] = factor * row[k];
  }
  for (Index k = 0; k < depth_; ++k) std::fill(target + k * kPanel + width, target + (k + 1) * kPanel, 0.0F);
}

void multiply(Index rows, Index depth, LeftFactor a, const Panels& b, Index first, Index last, float* c, Index c_stride,
              bool accumulate) {
  for (Index block = 0; block < rows; block += kRowBlock) {
    const Index block_end = std::min(rows, block + kRowBlock);
    for (Index p = first; p < last; ++p) {
      for (Index row = block; row < block_end; row += kTile) {
        const Index count = std::min(kTile, block_end - row);
        const LeftFactor from{a.data + row * a.row_stride, a.row_stride, a.depth_stride};
        kTiles[count - 1](depth, from, b.panel(p), c + row * c_stride + (p - first) * kPanel, c_stride, accumulate);
      }
    }
  }
}

}  // namespace laprox::cpu
