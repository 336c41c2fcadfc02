#pragma once

#include <vector>

#include "base/buffer.h"
#include "laprox/layer.h"

namespace laprox::cpu {

/// What remains of head outputs X [cells * n, H_q * d_v] after W_o: cell 0 holds the exact head outputs, the others
/// differences to them.
struct Projected {
  Matrix exact;     ///< [n, D] with bias
  Matrix squares;   ///< [cells, n] ||x W_o||^2; of cell 0 without meaning
  Matrix products;  ///< [cells, n] <x W_o, exact>
};

/// The sums of some kept outputs, x W_o + b_o.
struct KeptSums {
  std::vector<double> squares;   ///< [rows] ||x W_o + b_o||^2
  std::vector<double> products;  ///< [rows] <x W_o + b_o, exact output of the row's query>
};

/// Of head outputs X [queries.size(), H_q * d_v], row r being one of the query queries[r].
KeptSums project_kept(const LayerTensors& layer, const Buffer<float>& x, const std::vector<Index>& queries,
                      const Matrix& exact, int threads);

/// Multiplies by W_o a block of its columns at a time, so that no product is ever stored whole.
Projected project(const LayerTensors& layer, const float* head_outputs, Index cells, Index queries, int threads);

}  // namespace laprox::cpu
