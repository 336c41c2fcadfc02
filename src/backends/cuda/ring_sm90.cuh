#pragma once

#include "backends/cuda/stream_sm90.cuh"
#include "backends/cuda/tile_map.h"

namespace laprox::cuda {

/// Starts to copy the kTile rows from `row` on of a matrix, in panels (tile_map.h).
template <int Size>
__device__ inline void start_panels(uint4* target, const CUtensorMap& map, int row, int matrix, Arrival& arrival) {
#pragma unroll
  for (int panel = 0; panel < Size / 64; ++panel) {
    arrival.start_panel(target + panel * kTile * 8, map, 64 * panel, row, matrix);
  }
}

/// A stream (see stream.cuh) whose tiles one thread has copied, ahead of the warpgroups that read them. These wait for
/// tiles and not for one another, so that one's sums are formed under the products of another. SHAPE says beside the
/// tiles how many warpgroups read (kGroups); one more belongs to the thread that copies.
template <class Shape>
class Ring {
 public:
  static constexpr int kReaders = 128 * Shape::kGroups, kThreads = kReaders + 128;

  struct Signals {
    Arrival filled[Shape::kStages], read[Shape::kStages];
  };

  /// Of the tiles [first, last). Every thread of the block must make one.
  __device__ Ring(uint4* tiles, Signals& signals, int first, int last)
      : tiles_(tiles), signals_(signals), first_(first), count_(last - first) {
    if (threadIdx.x == 0) {
#pragma unroll
      for (int place = 0; place < Shape::kStages; ++place) {
        signals.filled[place].init();
        signals.read[place].init(kReaders / 32);
      }
      publish_arrivals();
    }
    __syncthreads();
  }

  /// Whether this thread is of those that fill the ring; all others are to read it.
  __device__ static bool fills() { return threadIdx.x >= kReaders; }

  /// start(tile, where its chunks go, arrival) has to expect and start the copies of a tile.
  template <class Start>
  __device__ void fill(const Start& start) const {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kFewRegisters));
    if (threadIdx.x != kReaders) return;
    for (int n = 0; n < count_; ++n) {
      Arrival& read = signals_.read[n % Shape::kStages];
      if (n >= Shape::kStages) read.wait((n / Shape::kStages - 1) & 1);
      start(first_ + n, tile(n), signals_.filled[n % Shape::kStages]);
    }
  }

  /// To be called by those who read, before anything else: takes the registers that those who fill need not.
  __device__ static void begin_reading() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters)); }

  __device__ int first() const { return first_; }
  __device__ int count() const { return count_; }
  /// The n-th tile's chunks, which are there from wait_for(n) to release(n).
  __device__ uint4* tile(int n) const { return tiles_ + n % Shape::kStages * (Shape::kTileBytes / 16); }
  __device__ void wait_for(int n) const {
    if (n < count_) signals_.filled[n % Shape::kStages].wait(n / Shape::kStages & 1);
  }
  /// Says that this warp is done with the n-th tile.
  __device__ void release(int n) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) signals_.read[n % Shape::kStages].arrive();
  }

  /// Calls body(tile, pointer to its chunks) for each tile.
  template <class Body>
  __device__ void read(const Body& body) const {
    for (int n = 0; n < count_; ++n) {
      wait_for(n);
      body(first_ + n, tile(n));
      release(n);
    }
  }

 private:
  /// Registers that a thread of each kind has, of what the launch gives to all of them.
  static constexpr int kAtLaunch = 65536 / kThreads / 8 * 8, kFewRegisters = 24;
  static constexpr int kRegisters = (kAtLaunch + (kAtLaunch - kFewRegisters) / Shape::kGroups) / 8 * 8;
  static_assert(kRegisters <= 255);

  uint4* tiles_;
  Signals& signals_;
  int first_, count_;
};

}  // namespace laprox::cuda
