#pragma once

#include "backends/cuda/left_rows.cuh"
#include "backends/cuda/stream.cuh"

namespace laprox::cuda {

/// Tiles of rows of a half type in shared memory (see stream.cuh), for mma.sync's right factor through ldmatrix.
template <class T, int Row, int Rows = kTile, int Threads = kThreads>
struct HalfRows : Chunks<T, Row> {
  using Chunks<T, Row>::kRow;
  static constexpr int kTileRows = Rows, kBlockThreads = Threads;
  static constexpr int kTileBytes = Rows * kRow * 16;
  __device__ static int place(int row, int chunk) { return row * kRow + (chunk ^ (row & 7)); }
  __device__ static void publish() {}
};

/// Where a lane points ldmatrix for the right factor of 16 rows of a tile, from `row` on and from chunk `first` on of
/// each, at step 0: lanes 0 .. 15 to both chunks of the first eight rows, the others to those of the second. Tiles
/// begin at multiples of their row length and `first` is a multiple of 8, so that 32 times a step's number can be
/// combined with the address by exclusive or, as place() would.
template <class Shape>
__device__ inline unsigned right_address(const uint4* tile, int row, int first) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return shared_address(tile + Shape::place(row + lane / 16 * 8 + lane % 8, first + lane / 8 % 2));
}

/// One step of the products of 16 Tiles resident rows with 16 rows of a tile: c[i][n] has those with its rows 8 n + ..
template <class T, int Size, int Tiles>
__device__ inline void multiply_rows(float (&c)[Tiles][2][4], const LeftRows<T, Size> (&resident)[Tiles],
                                     unsigned address, int step) {
  const uint4 right = load_pieces(address ^ (32 * step));
#pragma unroll
  for (int i = 0; i < Tiles; ++i) {
    multiply_step<T>(c[i][0], resident[i].steps[step], right.x, right.y);
    multiply_step<T>(c[i][1], resident[i].steps[step], right.z, right.w);
  }
}

/// Starts to copy `count` elements; those from `real` on become 0.
template <class Element>
__device__ inline void start_terms(uint4* target, const Element* source, int count, int real) {
  constexpr int kEach = 16 / static_cast<int>(sizeof(Element));
  const int i = static_cast<int>(threadIdx.x);
  if (i >= count / kEach) return;
  const bool there = i * kEach < real;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target + i)),
               "l"(there ? source + i * kEach : source), "r"(there ? 16 : 0));
}

}  // namespace laprox::cuda
