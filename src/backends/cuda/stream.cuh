#pragma once

#include <algorithm>

#include "backends/cuda/device.h"
#include "backends/cuda/tensor_core.cuh"

namespace laprox::cuda {

// The shape of every attention kernel: each warp keeps some rows of one matrix in registers, and the rows of another
// one stream past all warps of the block through a ring of tiles in shared memory.

inline constexpr int kTile = 64;     ///< rows streamed at a time
inline constexpr int kStep = 32;     ///< rows that a warp takes at a time: two accumulator tiles
inline constexpr int kMaxWarps = 4;  ///< per block, each with resident rows of its own

template <class T, int Size>
struct Streaming : Chunks<T, Size> {
  using Chunks<T, Size>::kRow;
  using Chunks<T, Size>::kBlocks;
  /// Column tiles of 8 resident rows per warp: as many as 128 registers hold. The two parts of a float take two.
  static constexpr int kRegistersPerColumn = 4 * kBlocks * (sizeof(T) == 4 ? 2 : 1);
  static constexpr int kColumns = 4 * kRegistersPerColumn <= 128 ? 4 : 128 / kRegistersPerColumn;
  static constexpr int kResident = 8 * kColumns;  ///< resident rows per warp
  static constexpr int kTileBytes = kTile * kRow * 16;
  static constexpr int kStages = kTileBytes <= (16 << 10) ? 4 : kTileBytes <= (32 << 10) ? 3 : 2;
  static constexpr int kSharedBytes = kStages * kTileBytes;
  static constexpr int kMaxThreads = 32 * kMaxWarps;
  /// Blocks that registers let be resident on a multiprocessor at once.
  static constexpr int kResidentBlocks = kColumns * kRegistersPerColumn <= 32   ? 4
                                         : kColumns * kRegistersPerColumn <= 64 ? 3
                                                                                : 2;
};

/// One warp's resident rows: chunk [n][b] is block b of row 8 n + g.
template <class T, int Size>
struct Resident {
  uint4 chunks[Streaming<T, Size>::kColumns][Streaming<T, Size>::kBlocks];

  /// Rows [0, count) of `rows`; the others become 0.
  __device__ void load(const T* rows, int count) {
    const uint4* source = reinterpret_cast<const uint4*>(rows);
#pragma unroll
    for (int n = 0; n < Streaming<T, Size>::kColumns; ++n) {
      const int row = 8 * n + lane_row();
#pragma unroll
      for (int b = 0; b < Streaming<T, Size>::kBlocks; ++b) {
        chunks[n][b] = row < count ? __ldg(source + row * Streaming<T, Size>::kRow + 4 * b + lane_column())
                                   : make_uint4(0, 0, 0, 0);
      }
    }
  }
};

/// Where chunk `chunk` of row `row` lies in a tile: odd rows have their 64-byte halves exchanged, so that two rows'
/// chunks, which a warp reads at once, lie in different banks.
template <class T, int Size>
__device__ inline int place_in_tile(int row, int chunk) {
  return row * Streaming<T, Size>::kRow + (chunk ^ ((row & 1) << 2));
}

/// Starts copying tile `tile` of a matrix of `rows` rows to shared memory; rows beyond the last become 0.
template <class T, int Size>
__device__ inline void start_tile(uint4* target, const T* matrix, int rows, int tile) {
  constexpr int kRow = Streaming<T, Size>::kRow;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kRow; i += static_cast<int>(blockDim.x)) {
    const int row = i / kRow, chunk = i % kRow, from = tile * kTile + row, bytes = from < rows ? 16 : 0;
    const uint4* source =
        reinterpret_cast<const uint4*>(matrix) + static_cast<size_t>(min(from, rows - 1)) * kRow + chunk;
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(target + place_in_tile<T, Size>(row, chunk)));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(bytes));
  }
}

/// How many shares to cut `tiles` tiles into, so that `others` times as many blocks fill the device once.
template <class T, int Size>
int shares_of(int tiles, int others) {
  const int blocks = Streaming<T, Size>::kResidentBlocks * device_limits().multiprocessors / others;
  return std::clamp(blocks, 1, tiles);
}

/// Streams the tiles [first, last) of `matrix` past the block and calls body(tile, pointer to its chunks) for each.
/// Every thread of the block must call it. `shared` has kSharedBytes.
template <class T, int Size, class Body>
__device__ inline void stream_tiles(const T* matrix, int rows, int first, int last, uint4* shared, const Body& body) {
  using S = Streaming<T, Size>;
  constexpr int kTileChunks = S::kTileBytes / 16;
#pragma unroll
  for (int stage = 0; stage < S::kStages - 1; ++stage) {
    if (first + stage < last) start_tile<T, Size>(shared + stage * kTileChunks, matrix, rows, first + stage);
    asm volatile("cp.async.commit_group;");
  }
  int stage = 0;
  for (int tile = first; tile < last; ++tile) {
    asm volatile("cp.async.wait_group %0;" ::"n"(S::kStages - 2));
    __syncthreads();  // the tile has arrived for all, and all are done with the one whose place is filled next
    const int next = tile + S::kStages - 1, free_stage = (stage + S::kStages - 1) % S::kStages;
    if (next < last) start_tile<T, Size>(shared + free_stage * kTileChunks, matrix, rows, next);
    asm volatile("cp.async.commit_group;");
    body(tile, shared + stage * kTileChunks);
    stage = (stage + 1) % S::kStages;
  }
  asm volatile("cp.async.wait_group 0;");
}

/// Inner products c[n] of the tile's rows first_row + g and first_row + g + 8 with the resident rows 8 n + ..
template <class T, int Size>
__device__ inline void products(float (&c)[Streaming<T, Size>::kColumns][4], const uint4* tile, int first_row,
                                const Resident<T, Size>& resident) {
#pragma unroll
  for (int n = 0; n < Streaming<T, Size>::kColumns; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
#pragma unroll
  for (int b = 0; b < Streaming<T, Size>::kBlocks; ++b) {
    const uint4 top = tile[place_in_tile<T, Size>(first_row + lane_row(), 4 * b + lane_column())];
    const uint4 bottom = tile[place_in_tile<T, Size>(first_row + lane_row() + 8, 4 * b + lane_column())];
#pragma unroll
    for (int n = 0; n < Streaming<T, Size>::kColumns; ++n) multiply<T>(c[n], top, bottom, resident.chunks[n][b]);
  }
}

}  // namespace laprox::cuda
