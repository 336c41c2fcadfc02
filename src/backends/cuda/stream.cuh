#pragma once

#include <algorithm>

#include "backends/cuda/device.h"
#include "backends/cuda/tensor_core.cuh"

namespace laprox::cuda {

// The shape of every attention kernel: each warp keeps some rows of one matrix in registers, and the rows of another
// one stream past all warps of the block through a ring of tiles in shared memory. A SHAPE says how: the chunks of a
// row (kRow), threads per block (kBlockThreads), tiles in the ring (kStages, kTileBytes, kSharedBytes), blocks per
// multiprocessor (kResidentBlocks), rows of a tile (kTileRows), where a chunk lies in it (place), and what makes a tile
// that has arrived visible to those who read it (publish). `Streaming` is the one for mma.sync, KeyTiles
// (stream_sm90.cuh) for wgmma.

inline constexpr int kTile = 64;  ///< rows streamed at a time
inline constexpr int kStep = 32;  ///< rows that a warp takes at a time: two accumulator tiles
inline constexpr int kWarps = 4;  ///< per block, each with resident rows of its own, or none
inline constexpr int kThreads = 32 * kWarps;

template <class T, int Size>
struct Streaming : Chunks<T, Size> {
  using Chunks<T, Size>::kRow;
  using Chunks<T, Size>::kBlocks;
  static constexpr int kSteps = 2 * kBlocks;  ///< of 32 bytes in a row
  /// Column tiles of 8 resident rows per warp: as many as 128 registers hold. The two parts of a float take two.
  static constexpr int kRegistersPerColumn = 4 * kBlocks * (sizeof(T) == 4 ? 2 : 1);
  static constexpr int kColumns = 4 * kRegistersPerColumn <= 128 ? 4 : 128 / kRegistersPerColumn;
  static constexpr int kResident = 8 * kColumns;  ///< resident rows per warp
  static constexpr int kTileRows = kTile;
  static constexpr int kTileBytes = kTile * kRow * 16;
  static constexpr int kStages = kTileBytes <= (16 << 10) ? 4 : kTileBytes <= (32 << 10) ? 3 : 2;
  static constexpr int kSharedBytes = kStages * kTileBytes;
  /// Blocks that registers let be resident on a multiprocessor at once.
  static constexpr int kResidentBlocks = kColumns * kRegistersPerColumn <= 32   ? 4
                                         : kColumns * kRegistersPerColumn <= 64 ? 3
                                                                                : 2;
  static constexpr int kBlockThreads = kThreads;

  /// Eight rows' chunks of one number, which ldmatrix reads at once, lie in different banks.
  __device__ static int place(int row, int chunk) { return row * kRow + (chunk ^ (row & 7)); }
  __device__ static void publish() {}
};

/// One warp's resident rows: [n][s] is step s of row 8 n + g, as the right factor of products.
template <class T, int Size>
struct Resident {
  uint2 steps[Streaming<T, Size>::kColumns][Streaming<T, Size>::kSteps];

  /// Rows [0, count) of `rows`; the others become 0.
  __device__ void load(const T* rows, int count) {
    const unsigned* words = reinterpret_cast<const unsigned*>(rows);
#pragma unroll
    for (int n = 0; n < Streaming<T, Size>::kColumns; ++n) {
      const int row = 8 * n + lane_row();
#pragma unroll
      for (int s = 0; s < Streaming<T, Size>::kSteps; ++s) {
        const unsigned* from = words + row * Streaming<T, Size>::kRow * 4 + 8 * s + lane_column();
        steps[n][s] = row < count ? make_uint2(__ldg(from), __ldg(from + 4)) : make_uint2(0, 0);
      }
    }
  }
};

/// Starts copying tile `tile` of a matrix of `rows` rows to shared memory; rows beyond the last become 0.
template <class Shape, class T>
__device__ inline void start_tile(uint4* target, const T* matrix, int rows, int tile) {
  constexpr int kRow = Shape::kRow, kRows = Shape::kTileRows;
  const int thread = static_cast<int>(threadIdx.x);
  const uint4* source = reinterpret_cast<const uint4*>(matrix) + static_cast<size_t>(tile) * kRows * kRow + thread;
  const int last = (rows - tile * kRows) * kRow;  // chunks of the tile that there are
#pragma unroll
  for (int i = 0; i < kRows * kRow; i += Shape::kBlockThreads) {
    if (i + Shape::kBlockThreads > kRows * kRow && thread + i >= kRows * kRow) break;
    const int row = (thread + i) / kRow, chunk = (thread + i) % kRow;
    const unsigned to = shared_address(target + Shape::place(row, chunk));
    if (last >= kRows * kRow) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(source + i));
    } else {
      const bool real = thread + i < last;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(real ? source + i : source - thread),
                   "r"(real ? 16 : 0));
    }
  }
}

/// How many shares to cut `tiles` tiles into, so that `others` times as many blocks fill the device once.
template <class Shape>
int shares_of(int tiles, int others) {
  const int blocks = Shape::kResidentBlocks * device_limits().multiprocessors / others;
  return std::clamp(blocks, 1, tiles);
}

/// Tiles that are their rows.
struct NoRest {
  __device__ void operator()(int, uint4*) const {}
};

/// Streams the tiles [first, last) of `matrix` past the block and calls body(tile, pointer to its chunks) for each.
/// Every thread of the block must call it. `shared` has kSharedBytes. start_rest(tile, its place) starts to copy what a
/// tile has behind its rows.
template <class Shape, class T, class Body, class Rest = NoRest>
__device__ inline void stream_tiles(const T* matrix, int rows, int first, int last, uint4* shared, const Body& body,
                                    const Rest& start_rest = {}) {
  constexpr int kTileChunks = Shape::kTileBytes / 16;
  const auto start = [&](int tile, uint4* place) {
    if (tile < last) {
      start_tile<Shape>(place, matrix, rows, tile);
      start_rest(tile, place);
    }
    asm volatile("cp.async.commit_group;");
  };
#pragma unroll
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) start(first + stage, shared + stage * kTileChunks);
  int stage = 0;
  for (int tile = first; tile < last; ++tile) {
    asm volatile("cp.async.wait_group %0;" ::"n"(Shape::kStages - 2));
    Shape::publish();
    __syncthreads();  // the tile has arrived for all, and all are done with the one whose place is filled next
    const int free_stage = (stage + Shape::kStages - 1) % Shape::kStages;
    start(tile + Shape::kStages - 1, shared + free_stage * kTileChunks);
    body(tile, shared + stage * kTileChunks);
    stage = (stage + 1) % Shape::kStages;
  }
  asm volatile("cp.async.wait_group 0;");
}

/// Inner products c[n] of the 16 rows of the tile from first_row on with the resident rows 8 n + ..
template <class T, int Size>
__device__ inline void products(float (&c)[Streaming<T, Size>::kColumns][4], const uint4* tile, int first_row,
                                const Resident<T, Size>& resident) {
  using S = Streaming<T, Size>;
#pragma unroll
  for (int n = 0; n < S::kColumns; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
  // Lane l points ldmatrix to row l % 16, chunk l / 16 of the step. Tiles begin at multiples of their row length, so
  // that the step's number can be combined with the address by exclusive or, as place() would.
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned address = shared_address(tile + S::place(first_row + lane % 16, lane / 16));
#pragma unroll
  for (int s = 0; s < S::kSteps; ++s) {
    const uint4 left = load_pieces(address ^ (32 * s));
#pragma unroll
    for (int n = 0; n < S::kColumns; ++n) multiply_step<T>(c[n], left, resident.steps[n][s]);
  }
}

}  // namespace laprox::cuda
