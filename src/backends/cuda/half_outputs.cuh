#pragma once

#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/half_removal.h"
#include "backends/cuda/left_rows.cuh"
#include "backends/cuda/stream.cuh"

namespace laprox::cuda {

// What both kernels of half_outputs are made of: the one for any device and the one for sm_90a.

/// Weights enter float16 times this power of two, so that small ones keep their digits.
inline constexpr float kWeightScale = 0x1p15F;

/// Weights of one tile as left factors of two parts: [k][..] for the keys 16 k + ..
struct TileWeights {
  unsigned high[4][4], low[4][4];

  __device__ void take(const float (&c)[8][4]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) split(j, half, c[j][2 * half], c[j][2 * half + 1]);
    }
  }

 private:
  __device__ void split(int j, int half, float x, float y) {
    const __half2 rounded = __floats2half2_rn(x, y);
    const __half2 rest = __floats2half2_rn(x - __low2float(rounded), y - __high2float(rounded));
    high[j / 2][j % 2 * 2 + half] = *reinterpret_cast<const unsigned*>(&rounded);
    low[j / 2][j % 2 * 2 + half] = *reinterpret_cast<const unsigned*>(&rest);
  }
};

/// The two rows of a lane: their softmaxes, and what is summed of them beside the outputs.
struct RestRows {
  float maximum[2], factor[2], remainder[2] = {};
  Dominant* dominants[2];

  /// of_rows: the first one's place; the second one is eight behind. Rows that are not there have no weights.
  __device__ RestRows(const HalfTerms& terms, size_t of_rows, bool there) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const RowSoftmax of_row = terms.softmax[of_rows + 8 * half];
      maximum[half] = there ? of_row.maximum : 0;
      factor[half] = there ? of_row.inverse_sum * kWeightScale : 0;
      dominants[half] = terms.dominants + of_rows + 8 * half;
    }
  }

  /// One row's finished products with the 64 keys from first_key on become weights; its dominant entry is left out and
  /// noted.
  __device__ void weigh(float (&c)[8][4], int half, float form_factor, int first_key) {
    float largest = 0, of_tile = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = c[j][2 * half + e];
        x = fast_exp2(__fmaf_rn(x, form_factor, -maximum[half])) * factor[half];
        largest = fmaxf(largest, x);
      }
    }
    if (largest > kDominant * kWeightScale) leave_out_dominant(c, half, first_key);
#pragma unroll
    for (int j = 0; j < 8; ++j) of_tile += c[j][2 * half] + c[j][2 * half + 1];
    remainder[half] += of_tile;
  }

  /// The rows' outputs and remainders of this share of the keys. parts: [Size] of the first row, remainders alike.
  template <int Size>
  __device__ void store(const float (&outputs)[Size / 8][4], float scale, float* parts, float* remainders) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < Size / 8; ++j) {
        *reinterpret_cast<float2*>(parts + 8 * half * Size + 8 * j + 2 * lane_column()) =
            make_float2(outputs[j][2 * half] * scale, outputs[j][2 * half + 1] * scale);
      }
      float sum = remainder[half];
      sum += __shfl_xor_sync(~0U, sum, 1);
      sum += __shfl_xor_sync(~0U, sum, 2);
      if (lane_column() == 0) remainders[8 * half] = sum / kWeightScale;
    }
  }

 private:
  __device__ void leave_out_dominant(float (&c)[8][4], int half, int first_key) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = half == 0 ? c[j][e] : c[j][2 + e];
        if (x <= kDominant * kWeightScale) continue;
        const int token = first_key + 8 * j + 2 * lane_column() + e;
        *(half == 0 ? dominants[0] : dominants[1]) = {token, x / kWeightScale};
        x = 0;
      }
    }
  }
};

/// What one block of either kernel works on: its warps' row blocks, S::kRowBlocks of two warps each, and its share of
/// the tiles of keys that any of them sees, [first, last).
template <class S>
struct RestBlock {
  int kv_head, split, first_block, row_block;
  bool idle;  ///< there is no such row block
  RowBlock rows;
  int first, last;
  size_t first_row;  ///< of the lane, among all KV heads' rows

  /// Later queries see more keys: they begin first.
  __device__ RestBlock(const HalfTerms& terms, int row_blocks, int splits)
      : kv_head(static_cast<int>(blockIdx.x) % terms.layer.kv_heads),
        split(static_cast<int>(blockIdx.x) / terms.layer.kv_heads),
        first_block(static_cast<int>(gridDim.y - 1 - blockIdx.y) * S::kRowBlocks),
        row_block(first_block + static_cast<int>(threadIdx.x) / 64),
        idle(row_block >= row_blocks),
        rows(terms.layer, terms.range, kv_head, idle ? first_block : row_block, kRowBlockRows) {
    const RowBlock low(terms.layer, terms.range, kv_head, first_block, kRowBlockRows);
    const RowBlock high(terms.layer, terms.range, kv_head, min(first_block + S::kRowBlocks, row_blocks) - 1,
                        kRowBlockRows);
    const int begin = low.first_key / kTile, tiles = (high.last_key + kTile - 1) / kTile - begin;
    first = begin + static_cast<int>(static_cast<long long>(tiles) * split / splits);
    last = begin + static_cast<int>(static_cast<long long>(tiles) * (split + 1) / splits);
    first_row = static_cast<size_t>(kv_head) * terms.rows + min(row_block, row_blocks - 1) * kRowBlockRows +
                first_warp_row() + lane_row();
  }
};

/// Calls launch<T, Size>(grid, row blocks, shares, parts, remainders), which has to launch the kernel of Tiles<T,
/// Size>: rests and remainders by shares of the keys, or where there is one share the rests themselves. Returns the
/// number of shares.
template <template <class, int> class Tiles, class Launch>
int launch_rests(const HalfTerms& terms, HalfScratch& scratch, const Launch& launch) {
  const Layer& layer = terms.layer;
  const RowLayout layout(layer, terms.range);
  const size_t rows = static_cast<size_t>(layer.kv_heads) * terms.rows;
  int splits = 1;
  for_half_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    if constexpr (Size <= kMostHalfSize) {
      using S = Tiles<T, Size>;
      const int groups = (layout.row_blocks + S::kRowBlocks - 1) / S::kRowBlocks;
      splits = shares_of<S>((layer.tokens + kTile - 1) / kTile, layer.kv_heads * groups);
      float* parts = splits == 1 ? terms.rests : scratch.parts.at_least(splits * rows * Size);
      launch.template operator()<T, Size>(dim3(splits * layer.kv_heads, groups), layout.row_blocks, splits, parts,
                                          scratch.remainder_parts.at_least(splits * rows));
    }
  });
  check_launch("outputs without dominant entries");
  return splits;
}

/// half_outputs_sm90.cu: rests and remainders by shares of the keys, [shares, kv_heads, rows, S] and [shares, kv_heads,
/// rows], or where there is one share the rests themselves; notes the dominant entries. Returns the number of shares.
int rest_parts_sm90(const HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream);

}  // namespace laprox::cuda
