#pragma once

#include "backends/cuda/left_rows.cuh"
#include "backends/cuda/stream.cuh"
#include "backends/cuda/wgmma.cuh"

namespace laprox::cuda {

// Attention with wgmma, for half types: a warpgroup keeps 64 query rows in registers, two row blocks of 32, a warp half
// of one; the keys of a tile are the right factor. So a lane (g, t) has the rows g and g + 8 of its warp's 16, and the
// keys 8 j + 2 t and 8 j + 2 t + 1 of a tile: sums over keys stay in its registers.

/// Tiles of kTile rows of a half type for wgmma, in panels of 128 bytes of each row.
template <class T, int Size>
struct HalfTiles : Chunks<T, Size> {
  using Chunks<T, Size>::kRow;
  static constexpr int kSteps = Size / 16;
  static constexpr int kTileRows = kTile;
  static constexpr int kPanelChunks = kTile * 8;
  static constexpr int kTileBytes = kTile * kRow * 16;
  static_assert(sizeof(T) == 2 && kTile == 64 && kRowBlockRows == Streaming<T, Size>::kResident);

  __device__ static int place(int row, int chunk) { return chunk / 8 * kPanelChunks + row * 8 + (chunk % 8 ^ row % 8); }
  __device__ static void publish() { publish_tiles(); }
};

/// Shape of a stream (see stream.cuh) of keys for wgmma.
template <class T, int Size>
struct KeyTiles : HalfTiles<T, Size> {
  static constexpr int kRowBlocks = 4;  ///< per block, two warps each
  static constexpr int kStages = Size <= 128 ? 4 : 3;
  static constexpr int kSharedBytes = kStages * KeyTiles::kTileBytes;
  static constexpr int kResidentBlocks = Size <= 128 ? 2 : 1;
  static constexpr int kBlockThreads = 64 * kRowBlocks;
};

/// Starts the inner products of a warpgroup's rows with those of a tile: c[j] is the accumulator tile of its rows 8 j +
/// ..
template <class Shape, class T, int Size>
__device__ inline void start_products(float (&c)[8][4], const LeftRows<T, Size>& rows, const uint4* tile) {
  const RightFactor right = RightFactor::panels(tile);
  start_wgmma();
#pragma unroll
  for (int s = 0; s < Shape::kSteps; ++s) {
    wgmma<T>(c, rows.steps[s], right + (s / 4 * Shape::kPanelChunks + s % 4 * 2), s > 0);
  }
  commit_wgmma();
}

}  // namespace laprox::cuda
