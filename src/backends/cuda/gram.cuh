#pragma once

#include "backends/cuda/kernels.h"
#include "backends/cuda/tensor_core.cuh"

namespace laprox::cuda {

/// One block's part of M = W^a (W^b)^T, kSide x kSide elements of it over one split of the depth D, and how both
/// factors stream through shared memory: stages of kDepth chunks of 16 bytes of each of their rows, panels of 128 bytes
/// in which eight rows' chunks are exchanged, so that ldmatrix meets no bank twice (and as wgmma's 128-byte swizzle has
/// it).
template <class T, int Size>
class GramBlock {
 public:
  static constexpr int kSplits = 4;  ///< of the depth: so many partial products, which also keeps chains of sums short
  static constexpr int kDepth = 8;
  static constexpr int kSide = Size < 128 ? Size : 128, kTiles = Size / kSide * (Size / kSide);
  static constexpr int kThreads = 2 * kSide;
  static constexpr int kStages = 3;
  static constexpr int kSharedBytes = kStages * 2 * kSide * kDepth * 16;

  /// Of the grid (tile of M, form, split of the depth).
  __device__ GramBlock(const Layer& layer, const FormPair* pairs, uint4* shared)
      : layer_(layer),
        pair_(pairs[blockIdx.y]),
        first_row_(static_cast<int>(blockIdx.x) / (Size / kSide) * kSide),
        first_column_(static_cast<int>(blockIdx.x) % (Size / kSide) * kSide),
        same_rows_(pair_.a == pair_.b && first_row_ == first_column_),
        chunks_(layer.model_stride * static_cast<int>(sizeof(T)) / 16),
        shared_(shared) {}

  /// Calls body(rows of W^a, rows of W^b) for every stage of the split, after publish() in every thread.
  template <class Publish, class Body>
  __device__ void stream(const Publish& publish, const Body& body) const {
    const int stages = (chunks_ + kDepth - 1) / kDepth;
    const int first = stages * static_cast<int>(blockIdx.z) / kSplits;
    const int last = stages * static_cast<int>(blockIdx.z + 1) / kSplits;
    for (int stage = first; stage < first + kStages - 1; ++stage) start(stage, last);
    for (int stage = first; stage < last; ++stage) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
      publish();
      __syncthreads();
      start(stage + kStages - 1, last);
      const uint4* rows = place(stage);
      body(rows, same_rows_ ? rows : rows + kSide * kDepth);
    }
    asm volatile("cp.async.wait_group 0;");
  }

  /// ldmatrix's pieces, this lane pointing to one row of one of them.
  __device__ static uint4 load_fragment(const uint4* rows, int row, int chunk) {
    return load_pieces(shared_address(rows + row * kDepth + (chunk ^ (row & 7))));
  }

  /// Stores an accumulator tile whose first row of this lane, g, is the block's `row`, and its first column there the
  /// block's `column`, in gram [forms, splits, Size, Size]; raises `magnitude` to the lane's largest one of it.
  __device__ void store(const float (&c)[4], int row, int column, float* gram, float& magnitude) const {
    float* out = gram + static_cast<size_t>(part()) * Size * Size + (first_row_ + row) * Size + first_column_ + column;
    *reinterpret_cast<float2*>(out) = make_float2(c[0], c[1]);
    *reinterpret_cast<float2*>(out + 8 * Size) = make_float2(c[2], c[3]);
#pragma unroll
    for (float x : c) magnitude = fmaxf(magnitude, fabsf(x));
  }
  /// Stores the largest of the block's threads' magnitudes: largest [forms, splits, tiles of M].
  __device__ void store_largest(float magnitude, float* largest) const {
    __shared__ float of_warp[kThreads / 32];
    for (int other = 16; other > 0; other /= 2) {
      magnitude = fmaxf(magnitude, __shfl_xor_sync(~0U, magnitude, other));
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = magnitude;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (float x : of_warp) magnitude = fmaxf(magnitude, x);
    largest[part() * kTiles + blockIdx.x] = magnitude;
  }

  /// Launches one of the kernels that make all parts of `count` matrices.
  template <class Kernel>
  static void launch(Kernel* kernel, const Layer& layer, const FormPair* pairs, int count, float* gram, float* largest,
                     cudaStream_t stream) {
    allow_shared_memory(kernel, kSharedBytes);
    kernel<<<dim3(kTiles, count, kSplits), kThreads, kSharedBytes, stream>>>(layer, pairs, gram, largest);
    check_launch("Gram matrices");
  }

 private:
  __device__ static int part() { return static_cast<int>(blockIdx.y) * kSplits + static_cast<int>(blockIdx.z); }
  __device__ uint4* place(int stage) const { return shared_ + stage % kStages * 2 * kSide * kDepth; }

  __device__ void start(int stage, int last) const {
    if (stage < last) {
      start_rows(place(stage), pair_.a, first_row_, stage * kDepth);
      // A square of one matrix needs its rows once.
      if (!same_rows_) start_rows(place(stage) + kSide * kDepth, pair_.b, first_column_, stage * kDepth);
    }
    asm volatile("cp.async.commit_group;");
  }
  /// Starts copying kSide rows of W^head; rows and chunks beyond the last become 0.
  __device__ void start_rows(uint4* target, int head, int first_row, int first_chunk) const {
    const T* w =
        static_cast<const T*>(layer_.w_o) + static_cast<size_t>(head) * layer_.value_size * layer_.model_stride;
#pragma unroll
    for (int i = static_cast<int>(threadIdx.x); i < kSide * kDepth; i += kThreads) {
      const int row = i / kDepth, chunk = i % kDepth;
      const bool real = first_row + row < layer_.value_size && first_chunk + chunk < chunks_;
      const T* source = real ? w + static_cast<size_t>(first_row + row) * layer_.model_stride : w;
      const uint4* from = reinterpret_cast<const uint4*>(source) + (real ? first_chunk + chunk : 0);
      const uint4* to = target + row * kDepth + (chunk ^ (row & 7));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                   "r"(real ? 16 : 0));
    }
  }

  const Layer& layer_;
  FormPair pair_;
  int first_row_, first_column_;
  bool same_rows_;
  int chunks_;
  uint4* shared_;
};

}  // namespace laprox::cuda
