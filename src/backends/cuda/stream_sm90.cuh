#pragma once

#include "backends/cuda/rows.cuh"
#include "backends/cuda/stream.cuh"
#include "backends/cuda/wgmma.cuh"

namespace laprox::cuda {

// Attention with wgmma, for half types: a warpgroup keeps 64 query rows in registers, two row blocks of 32, a warp half
// of one; the keys of a tile are the right factor. So a lane (g, t) has the rows g and g + 8 of its warp's 16, and the
// keys 8 j + 2 t and 8 j + 2 t + 1 of a tile: sums over keys stay in its registers.

inline constexpr int kRowBlockRows = 32;

/// Tiles of rows of a half type for wgmma, in panels of 128 bytes of each row.
template <class T, int Size, int Rows>
struct HalfTiles : Chunks<T, Size> {
  using Chunks<T, Size>::kRow;
  static constexpr int kSteps = Size / 16;
  static constexpr int kTileRows = Rows;
  static constexpr int kParts = Rows / 64;  ///< of a tile, each of which is multiplied at once
  static constexpr int kPanelChunks = Rows * 8;
  static constexpr int kTileBytes = Rows * kRow * 16;
  static_assert(sizeof(T) == 2 && Rows % 64 == 0 && kRowBlockRows == Streaming<T, Size>::kResident);

  __device__ static int place(int row, int chunk) { return chunk / 8 * kPanelChunks + row * 8 + (chunk % 8 ^ row % 8); }
  __device__ static void publish() { publish_tiles(); }
};

/// Shape of a stream (see stream.cuh) of keys for wgmma.
template <class T, int Size>
struct KeyTiles : HalfTiles<T, Size, kTile> {
  static constexpr int kRowBlocks = 4;  ///< per block, two warps each
  static constexpr int kStages = Size <= 128 ? 4 : 3;
  static constexpr int kSharedBytes = kStages * KeyTiles::kTileBytes;
  static constexpr int kResidentBlocks = Size <= 128 ? 2 : 1;
  static constexpr int kBlockThreads = 64 * kRowBlocks;
};

/// Which rows of its row block a warp has.
__device__ inline int first_warp_row() { return static_cast<int>(threadIdx.x) / 32 % 2 * 16; }

/// A warp's 16 rows as left factor.
template <class T, int Size>
struct LeftRows {
  static constexpr int kSteps = Size / 16;
  unsigned steps[kSteps][4];

  /// Rows [0, count) of `rows`; the others become 0.
  __device__ void load(const T* rows, int count) {
    const unsigned* words = reinterpret_cast<const unsigned*>(rows);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 8 * half + lane_row();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const unsigned* from = words + row * Size / 2 + 8 * s + lane_column();
        steps[s][half] = row < count ? __ldg(from) : 0;
        steps[s][half + 2] = row < count ? __ldg(from + 4) : 0;
      }
    }
  }
  /// A warp's half of a row block's queries, of which there are `count`.
  __device__ void load_queries(const T* queries, int count) {
    load(queries + first_warp_row() * Size, count - first_warp_row());
  }
};

/// Starts the inner products of a warpgroup's rows with 64 rows of a tile, its `part`-th: c[j] is the accumulator tile
/// of the rows 8 j + .. of these.
template <class Shape, class T, int Size>
__device__ inline void start_products(float (&c)[8][4], const LeftRows<T, Size>& rows, const uint4* tile, int part) {
  const RightFactor right = RightFactor::panels(tile + part * 64 * 8);
  start_wgmma();
#pragma unroll
  for (int s = 0; s < Shape::kSteps; ++s) {
    wgmma<T>(c, rows.steps[s], right + (s / 4 * Shape::kPanelChunks + s % 4 * 2), s > 0);
  }
  commit_wgmma();
}

/// The products as what logits are made from: capped, and hidden where a query does not see one of the 64 keys.
__device__ inline void finish_products(float (&c)[8][4], const Layer& layer, const RowBlock& rows, int first_key,
                                       const LogitForm& form) {
  form.apply_cap(c);
  if (rows.sees_all(layer, first_key, first_key + 64)) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int position = rows.position(layer, first_warp_row() + 8 * half + lane_row());
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (!sees(layer, position, first_key + 8 * j + 2 * lane_column() + e)) c[j][2 * half + e] = form.hidden();
      }
    }
  }
}

}  // namespace laprox::cuda
