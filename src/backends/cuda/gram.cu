#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/forms.cuh"
#include "backends/cuda/kernels.h"

namespace laprox::cuda {

namespace {

constexpr int kSplits = 4;       ///< of the depth D: so many partial products, which also keeps chains of sums short
constexpr int kWarps = 4;        ///< per block
constexpr int kColumnTiles = 8;  ///< a warp makes 16 rows x 64 columns

template <class T>
__device__ uint4 load_chunk(const Layer& layer, int head, int row, int chunk) {
  if (row >= layer.value_size) return make_uint4(0, 0, 0, 0);
  const T* w =
      static_cast<const T*>(layer.w_o) + (static_cast<size_t>(head) * layer.value_size + row) * layer.model_stride;
  return __ldg(reinterpret_cast<const uint4*>(w) + chunk);
}

/// M = W^a (W^b)^T. Block (tiles of M, form, split) reads its part of the depth straight from memory: W_o is small
/// enough to come from the cache after the first touch. gram: [forms, splits, size, size].
template <class T>
__global__ void __launch_bounds__(32 * kWarps) gram_kernel(Layer layer, const FormPair* pairs, float* gram) {
  const int size = layer.value_stride, column_groups = size / (8 * kColumnTiles);
  const int tile = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int first_row = tile / column_groups * 16, first_column = tile % column_groups * 8 * kColumnTiles;
  const FormPair pair = pairs[blockIdx.y];
  const int blocks = layer.model_stride * static_cast<int>(sizeof(T)) / 64;
  const int first = blocks * static_cast<int>(blockIdx.z) / kSplits;
  const int last = blocks * static_cast<int>(blockIdx.z + 1) / kSplits;

  float c[kColumnTiles][4] = {};
  for (int block = first; block < last; ++block) {
    const int chunk = 4 * block + lane_column();
    const uint4 top = load_chunk<T>(layer, pair.a, first_row + lane_row(), chunk);
    const uint4 bottom = load_chunk<T>(layer, pair.a, first_row + lane_row() + 8, chunk);
    uint4 columns[kColumnTiles];
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      columns[n] = load_chunk<T>(layer, pair.b, first_column + 8 * n + lane_row(), chunk);
    }
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) multiply<T>(c[n], top, bottom, columns[n]);
  }
  float* out = gram + (static_cast<size_t>(blockIdx.y) * kSplits + blockIdx.z) * size * size;
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
    float* at = out + (first_row + lane_row()) * size + first_column + 8 * n + 2 * lane_column();
    *reinterpret_cast<float2*>(at) = make_float2(c[n][0], c[n][1]);
    *reinterpret_cast<float2*>(at + 8 * size) = make_float2(c[n][2], c[n][3]);
  }
}

constexpr int kPackThreads = 512;

/// The largest of the block's values, in every thread.
__device__ float block_maximum(float x) {
  __shared__ float of_warp[kPackThreads / 32];
  for (int other = 16; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(~0U, x, other));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  for (float y : of_warp) x = fmaxf(x, y);
  return x;
}

/// One block per form: folds the sum of the partial products onto the triangle, scales it by a power of two into
/// float16's range, and writes each lane's chunks.
template <class T, int Size>
__global__ void __launch_bounds__(kPackThreads)
    pack_kernel(const float* gram, uint4* triangles, float* diagonals, float* scales) {
  using F = Forms<T, Size>;
  const float* parts = gram + static_cast<size_t>(blockIdx.x) * kSplits * Size * Size;
  const auto entry = [parts](int row, int column) {
    float sum = 0;
#pragma unroll
    for (int split = 0; split < kSplits; ++split)
      sum += parts[(static_cast<size_t>(split) * Size + row) * Size + column];
    return sum;
  };
  const int thread = static_cast<int>(threadIdx.x);
  float scale = 1;
  if (sizeof(T) == 2) {
    float largest = 0;
    for (int i = thread; i < Size * Size; i += kPackThreads) largest = fmaxf(largest, fabsf(entry(i / Size, i % Size)));
    largest = block_maximum(largest);
    // Twice the largest entry goes to [2^13, 2^14): no overflow, and entries keep all their bits down to 2^-28 of it.
    if (largest > 0) scale = exp2f(12 - floorf(log2f(largest)));
  }
  if (thread == 0) scales[blockIdx.x] = 1 / scale;
  for (int i = thread; i < Size; i += kPackThreads) {
    const int p = F::element(i / 8, i % 8);
    diagonals[static_cast<size_t>(blockIdx.x) * Size + i] = scale * entry(p, p);
  }
  for (int i = thread; i < F::kTiles * F::kBlocks * 32; i += kPackThreads) {
    const int lane = i % 32, block = i / 32 % F::kBlocks, tile = i / 32 / F::kBlocks;
    if (block > tile / F::kPairs) continue;
    const int column = F::element(tile, lane / 4);
    __align__(16) FormElement<T> chunk[F::kElements];
#pragma unroll
    for (int x = 0; x < F::kElements; ++x) {
      const int row_tile = F::kPairs * block + x / 2, place = 2 * (lane % 4) + x % 2;
      const int row = F::element(row_tile, place);
      const bool above = 8 * row_tile + place < 8 * tile + lane / 4;
      chunk[x] = above ? static_cast<FormElement<T>>(scale * (entry(row, column) + entry(column, row)))
                       : static_cast<FormElement<T>>(0.0F);
    }
    triangles[(static_cast<size_t>(blockIdx.x) * F::kChunks + F::first_chunk(tile) + block) * 32 + lane] =
        *reinterpret_cast<uint4*>(chunk);
  }
}

}  // namespace

void pack_forms(const Layer& layer, const FormPair* pairs, int count, PackedForms& forms, cudaStream_t stream) {
  const int size = layer.value_stride;
  float* gram = forms.gram.at_least(static_cast<size_t>(count) * kSplits * size * size);
  float* diagonals = forms.diagonals.at_least(static_cast<size_t>(count) * size);
  float* scales = forms.scales.at_least(count);
  const dim3 grid(size / 16 * (size / (8 * kColumnTiles)) / kWarps, count, kSplits);
  for_element(layer.element, [&]<class T>() { gram_kernel<T><<<grid, 32 * kWarps, 0, stream>>>(layer, pairs, gram); });
  check_launch("Gram matrices");
  for_element_and_size(layer.element, size, [&]<class T, int Size>() {
    uint4* triangles = forms.triangles.at_least(static_cast<size_t>(count) * Forms<T, Size>::kChunks * 32);
    pack_kernel<T, Size><<<count, kPackThreads, 0, stream>>>(gram, triangles, diagonals, scales);
  });
  check_launch("packing Gram matrices");
}

}  // namespace laprox::cuda
