#pragma once

#include "backends/cpu/lanes.h"
#include "base/buffer.h"
#include "laprox/tensor.h"

namespace laprox::cpu {

/// Columns of a panel and rows of a tile: the tile's accumulators, one broadcast and two loads fill the registers.
inline constexpr Index kPanel = 2 * kLanes;
inline constexpr Index kTile = kLanes == 16 ? 12 : 6;

/// `count` rounded up to whole panels.
inline Index padded(Index count) { return (count + kPanel - 1) / kPanel * kPanel; }

/// The right factor B [depth, columns] of a product, cut into panels of kPanel columns, each [depth][kPanel] in one
/// piece and padded with zeros: what the product reads, it reads in order.
class Panels {
 public:
  Panels() = default;
  Panels(Index depth, Index columns) : depth_(depth), columns_(columns), memory_(depth * padded(columns)) {}

  Index depth() const { return depth_; }
  Index columns() const { return columns_; }
  Index count() const { return padded(columns_) / kPanel; }
  float* panel(Index p) { return memory_.data() + p * depth_ * kPanel; }
  const float* panel(Index p) const { return memory_.data() + p * depth_ * kPanel; }

  /// Row `k` of B from `depth` values; call for every k.
  void set_row(Index k, const float* values);
  /// Columns of B from the rows of `source` [columns, depth]: B = factor * source^T. One panel.
  void set_panel_transposed(Index p, const float* source, Index row_stride, float factor);

 private:
  Index depth_ = 0, columns_ = 0;
  Buffer<float> memory_;
};

/// The left factor A: element (m, k) at data[m * row_stride + k * depth_stride].
struct LeftFactor {
  const float* data;
  Index row_stride, depth_stride;
};

/// C[m, n] (+)= sum over k < depth of A[m, k] B[k, n] for the panels [first, last). C is row-major with `c_stride` and
/// room for whole panels; column 0 of C is column 0 of panel `first`. Sums run over k ascending, whatever the number of
/// rows.
void multiply(Index rows, Index depth, LeftFactor a, const Panels& b, Index first, Index last, float* c, Index c_stride,
              bool accumulate = false);

}  // namespace laprox::cpu
