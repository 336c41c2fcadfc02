#pragma once

#include "backends/cuda/rows.cuh"
#include "backends/cuda/stream.cuh"
#include "backends/cuda/wgmma.cuh"

namespace laprox::cuda {

// Attention with wgmma, for half types: a warpgroup keeps 64 query rows in registers, two row blocks of 32, a warp half
// of one; the keys of a tile are the right factor. So a lane (g, t) has the rows g and g + 8 of its warp's 16, and the
// keys 8 j + 2 t and 8 j + 2 t + 1 of a tile: sums over keys stay in its registers.

inline constexpr int kRowBlocks = 4;  ///< per block, two warps each

/// Shape of a stream (see stream.cuh) of keys for wgmma.
template <class T, int Size>
struct KeyTiles : Chunks<T, Size> {
  using Chunks<T, Size>::kRow;
  static constexpr int kResident = 32;  ///< rows of a row block
  static constexpr int kSteps = Size / 16;
  static constexpr int kPanelChunks = kTile * 8;
  static constexpr int kTileBytes = kTile * kRow * 16;
  static constexpr int kStages = Size <= 128 ? 4 : 3;
  static constexpr int kSharedBytes = kStages * kTileBytes;
  static constexpr int kResidentBlocks = Size <= 128 ? 2 : 1;
  static constexpr int kBlockThreads = 64 * kRowBlocks;
  static_assert(sizeof(T) == 2 && kResident == Streaming<T, Size>::kResident);

  __device__ static int place(int row, int chunk) { return chunk / 8 * kPanelChunks + row * 8 + (chunk % 8 ^ row % 8); }
  __device__ static void publish() { publish_tiles(); }
};

/// Which rows of its row block a warp has.
__device__ inline int first_warp_row() { return static_cast<int>(threadIdx.x) / 32 % 2 * 16; }

/// A warp's query rows as left factor.
template <class T, int Size>
struct QueryRows {
  unsigned steps[KeyTiles<T, Size>::kSteps][4];

  /// Of the row block's queries [0, count) at `queries`; the others become 0.
  __device__ void load(const T* queries, int count) {
    const unsigned* words = reinterpret_cast<const unsigned*>(queries);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_warp_row() + 8 * half + lane_row();
#pragma unroll
      for (int s = 0; s < KeyTiles<T, Size>::kSteps; ++s) {
        const unsigned* from = words + row * Size / 2 + 8 * s + lane_column();
        steps[s][half] = row < count ? __ldg(from) : 0;
        steps[s][half + 2] = row < count ? __ldg(from + 4) : 0;
      }
    }
  }
};

/// Inner products of a warpgroup's rows with the keys of a tile: c[j] is the accumulator tile of the keys 8 j + ..
template <class T, int Size>
__device__ inline void products(float (&c)[8][4], const QueryRows<T, Size>& rows, const uint4* tile) {
  const RightFactor keys = RightFactor::panels(tile);
  start_wgmma();
#pragma unroll
  for (int s = 0; s < KeyTiles<T, Size>::kSteps; ++s) {
    wgmma<T>(c, rows.steps[s], keys + (s / 4 * KeyTiles<T, Size>::kPanelChunks + s % 4 * 2), s > 0);
  }
  commit_wgmma();
  wait_wgmma(c);
}

/// The products as what logits are made from: capped, and hidden where a query does not see a key of the tile.
__device__ inline void finish_products(float (&c)[8][4], const Layer& layer, const RowBlock& rows, int tile,
                                       const LogitForm& form) {
  form.apply_cap(c);
  const int first_key = tile * kTile;
  if (rows.sees_all(layer, first_key, first_key + kTile)) return;
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
