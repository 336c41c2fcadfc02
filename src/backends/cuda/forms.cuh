#pragma once

#include <type_traits>

#include "backends/cuda/tensor_core.cuh"

namespace laprox::cuda {

// A quadratic form v M v^T is sum over column blocks J of 8 of <v_J, c_J> with c = v U, U the matrix M folded onto its
// upper triangle: U_pq = M_pq + M_qp for p < q, U_pp = M_pp. Elements are numbered so that a lane's share of v fits
// both of its uses without moving: as left factor it is a chunk, as a partner of the accumulator tile J it is the pair
// (2t, 2t + 1) of that tile. Pair w of lane t's chunk b is therefore given to tile J = kPairs b + w.

/// Half types meet as float16: a bfloat16 value fits its significand, and scales take care of the range.
template <class T>
using FormElement = std::conditional_t<sizeof(T) == 2, __half, float>;

template <class T, int Size>
struct Forms : Chunks<T, Size> {
  using Chunks<T, Size>::kElements;
  static constexpr int kPairs = kElements / 2;  ///< column tiles per block
  static constexpr int kTiles = Size / 8;       ///< column tiles J
  /// Chunks per lane of U: tile J needs the blocks 0 .. J / kPairs.
  static constexpr int kChunks = kPairs * (kTiles / kPairs) * (kTiles / kPairs + 1) / 2;
  static constexpr int kBytes = kChunks * 32 * 16 + Size * 4;  ///< of a form in shared memory, with its diagonal

  /// Tile and place within it -> element of v.
  __host__ __device__ static constexpr int element(int tile, int place) {
    return 4 * kElements * (tile / kPairs) + kElements * (place / 2) + 2 * (tile % kPairs) + place % 2;
  }
  /// Where the chunks of tile J begin.
  __host__ __device__ static constexpr int first_chunk(int tile) {
    const int block = tile / kPairs;
    return kPairs * block * (block + 1) / 2 + tile % kPairs * (block + 1);
  }
};

}  // namespace laprox::cuda
