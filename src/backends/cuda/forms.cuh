#pragma once

#include <type_traits>

#include "backends/cuda/kernels.h"
#include "backends/cuda/tensor_core.cuh"

namespace laprox::cuda {

// A quadratic form v M v^T is <v, c> with c = v U, U the matrix M folded onto its upper triangle: U_pq = M_pq + M_qp
// for p < q, U_pp = M_pp. Elements are numbered so that a lane's share of v fits both of its uses without moving: as
// left factor it is word w of chunk t of block b, as a partner of the accumulator tile J it is the pair (2t, 2t + 1) of
// that tile. Pair y of lane t's chunk b is therefore given to tile J = kPairs b + y.

/// Half types meet as float16: a bfloat16 value fits its significand, and scales take care of the range. U is the sum
/// of two float16 matrices, which together have its 22 leading bits.
template <class T>
using FormElement = std::conditional_t<sizeof(T) == 2, __half, float>;

/// How U lies in shared memory: the squares (block of columns, block of rows) on and above the diagonal, in a square
/// its two steps of the depth, in a step its column tiles, in a tile the two halves of the step, in a half the eight
/// columns' chunks. So are the 8 x 16 bytes that ldmatrix and wgmma read at once one piece of 128 bytes.
template <class T, int Size>
struct Forms : Chunks<T, Size> {
  using Chunks<T, Size>::kElements;
  using Chunks<T, Size>::kBlocks;
  static constexpr int kParts = sizeof(T) == 2 ? 2 : 1;
  static constexpr int kPairs = kElements / 2;  ///< column tiles per block
  static constexpr int kTiles = Size / 8;       ///< column tiles
  static constexpr int kStepChunks = kPairs * 2 * 8, kSquareChunks = 2 * kStepChunks;
  static constexpr int kPartChunks = kBlocks * (kBlocks + 1) / 2 * kSquareChunks;
  static constexpr int kChunks = kParts * kPartChunks;
  static constexpr int kBytes = kChunks * 16;  ///< of a form

  /// Tile and place within it -> element of v.
  __host__ __device__ static constexpr int element(int tile, int place) {
    return 4 * kElements * (tile / kPairs) + kElements * (place / 2) + 2 * (tile % kPairs) + place % 2;
  }
  /// Where the chunks of a square begin.
  __host__ __device__ static constexpr int square(int column_block, int row_block) {
    return (column_block * (column_block + 1) / 2 + row_block) * kSquareChunks;
  }
};

/// Launch configuration of a kernel whose blocks (share, KV head) keep some of the KV head's forms in shared memory,
/// beside `other_bytes`, and take `block_tokens` tokens at a time.
struct FormsLaunch {
  int groups;  ///< that the forms of a KV head are cut into
  int shared_bytes;
  dim3 grid;

  FormsLaunch(const Layer& layer, int per_kv_head, int form_bytes, int other_bytes, int block_tokens);
};

/// What one of these blocks has: the forms [first, first + count) of its KV head, and share `share` of `shares` of the
/// tokens. A group of more forms has more blocks.
struct FormsShare {
  int first, count, share, shares;

  __device__ FormsShare(int per_kv_head, int groups) {
    const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    const auto first_form = [&](int group) { return group * per_kv_head / groups; };
    const auto first_block = [&](int group) {
      return (2 * blocks * first_form(group) + per_kv_head) / (2 * per_kv_head);
    };
    int group = 0;
    while (first_block(group + 1) <= block) ++group;
    first = first_form(group);
    count = first_form(group + 1) - first;
    share = block - first_block(group);
    shares = first_block(group + 1) - first_block(group);
  }
};

}  // namespace laprox::cuda
