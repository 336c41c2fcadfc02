#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/forms.cuh"
#include "backends/cuda/kernels.h"

namespace laprox::cuda {

namespace {

constexpr int kSplits = 4;  ///< of the depth D: so many partial products, which also keeps chains of sums short
constexpr int kDepth = 8;   ///< chunks of the depth per stage: 128 bytes of each row
constexpr int kStages = 3;

/// The part of M = W^a (W^b)^T that a block makes: kTile x kTile, a warp 32 rows and half of the columns of it.
template <int Size>
constexpr int kTile = Size < 128 ? Size : 128;

/// Starts copying one stage of the depth of kTile rows of W^head to shared memory; rows and chunks beyond the last
/// become 0.
template <class T, int Tile>
__device__ void start_rows(uint4* target, const Layer& layer, int head, int first_row, int first_chunk,
                           int last_chunk) {
  const T* w = static_cast<const T*>(layer.w_o) + static_cast<size_t>(head) * layer.value_size * layer.model_stride;
  for (int i = static_cast<int>(threadIdx.x); i < Tile * kDepth; i += static_cast<int>(blockDim.x)) {
    const int row = i / kDepth, chunk = i % kDepth;
    const bool real = first_row + row < layer.value_size && first_chunk + chunk < last_chunk;
    const T* source = real ? w + static_cast<size_t>(first_row + row) * layer.model_stride : w;
    const uint4* from = reinterpret_cast<const uint4*>(source) + (real ? first_chunk + chunk : 0);
    const uint4* to = target + row * kDepth + (chunk ^ (row & 7));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(real ? 16 : 0));
  }
}

/// Four pieces for the tensor cores, this lane pointing to one row of one of them.
__device__ uint4 load_fragment(const uint4* tile, int row, int chunk) {
  return load_pieces(shared_address(tile + row * kDepth + (chunk ^ (row & 7))));
}

/// Block (tile of M, form, split of the depth). gram: [forms, splits, Size, Size]; largest: [forms, splits, tiles of
/// M], each block's largest magnitude.
template <class T, int Size>
__global__ void __launch_bounds__(2 * kTile<Size>)
    gram_kernel(Layer layer, const FormPair* pairs, float* gram, float* largest) {
  constexpr int kSide = kTile<Size>, kColumnTiles = kSide / 16, kStageChunks = 2 * kSide * kDepth;
  extern __shared__ __align__(1024) uint4 shared[];
  const FormPair pair = pairs[blockIdx.y];
  const int first_row = static_cast<int>(blockIdx.x) / (Size / kSide) * kSide;
  const int first_column = static_cast<int>(blockIdx.x) % (Size / kSide) * kSide;
  // A square of one matrix needs its rows once.
  const bool same_rows = pair.a == pair.b && first_row == first_column;
  const int chunks = layer.model_stride * static_cast<int>(sizeof(T)) / 16, stages = (chunks + kDepth - 1) / kDepth;
  const int first = stages * static_cast<int>(blockIdx.z) / kSplits;
  const int last = stages * static_cast<int>(blockIdx.z + 1) / kSplits;
  const auto start = [&](int stage) {
    if (stage < last) {
      uint4* target = shared + stage % kStages * kStageChunks;
      start_rows<T, kSide>(target, layer, pair.a, first_row, stage * kDepth, chunks);
      if (!same_rows) {
        start_rows<T, kSide>(target + kSide * kDepth, layer, pair.b, first_column, stage * kDepth, chunks);
      }
    }
    asm volatile("cp.async.commit_group;");
  };

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * (kSide / 2);
  float c[2][kColumnTiles][4] = {};
  for (int stage = first; stage < first + kStages - 1; ++stage) start(stage);
  for (int stage = first; stage < last; ++stage) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
    __syncthreads();
    start(stage + kStages - 1);
    const uint4* rows = shared + stage % kStages * kStageChunks;
    const uint4* columns = same_rows ? rows : rows + kSide * kDepth;
#pragma unroll
    for (int step = 0; step < kDepth / 2; ++step) {
      uint4 left[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) left[i] = load_fragment(rows, warp_row + 16 * i + lane % 16, 2 * step + lane / 16);
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        // Two column tiles: lanes 0 .. 15 point to both chunks of the first one, the others to those of the second one.
        const uint4 right =
            load_fragment(columns, warp_column + 8 * (n + lane / 16) + lane % 8, 2 * step + lane / 8 % 2);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_step<T>(c[i][n], left[i], make_uint2(right.x, right.y));
          multiply_step<T>(c[i][n + 1], left[i], make_uint2(right.z, right.w));
        }
      }
    }
  }
  asm volatile("cp.async.wait_group 0;");

  const int part = static_cast<int>(blockIdx.y) * kSplits + static_cast<int>(blockIdx.z);
  float* out = gram + static_cast<size_t>(part) * Size * Size + (first_row + warp_row + lane_row()) * Size +
               first_column + warp_column + 2 * lane_column();
  float maximum = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      *reinterpret_cast<float2*>(out + 16 * i * Size + 8 * n) = make_float2(c[i][n][0], c[i][n][1]);
      *reinterpret_cast<float2*>(out + (16 * i + 8) * Size + 8 * n) = make_float2(c[i][n][2], c[i][n][3]);
#pragma unroll
      for (float x : c[i][n]) maximum = fmaxf(maximum, fabsf(x));
    }
  }
  __shared__ float of_warp[kSide / 16];
  for (int other = 16; other > 0; other /= 2) maximum = fmaxf(maximum, __shfl_xor_sync(~0U, maximum, other));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = maximum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (float x : of_warp) maximum = fmaxf(maximum, x);
  largest[part * gridDim.x + blockIdx.x] = maximum;
}

/// Folds the sum of the partial products onto the triangle, times a power of two that brings it into float16's range.
/// Block (square of the triangle, form), a thread makes a chunk of each part.
template <class T, int Size>
__global__ void __launch_bounds__(Forms<T, Size>::kSquareChunks)
    pack_kernel(const FormPair* pairs, const float* gram, const float* largest, int maxima, uint4* triangles,
                float* scales) {
  using F = Forms<T, Size>;
  constexpr int kPerWord = F::kElements / 4;
  const int form = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const float* parts = gram + static_cast<size_t>(form) * kSplits * Size * Size;
  const auto entry = [parts](int row, int column) {
    float sum = 0;
#pragma unroll
    for (int split = 0; split < kSplits; ++split) sum += parts[(split * Size + row) * Size + column];
    return sum;
  };
  float scale = 1;
  if (sizeof(T) == 2) {
    float bound = 0;  // no element of U is larger than 2 kSplits times a part of it
    for (int i = 0; i < maxima; ++i) bound = fmaxf(bound, largest[form * maxima + i]);
    if (bound > 0) scale = exp2f(14 - floorf(log2f(2 * kSplits * bound)));
  }
  if (blockIdx.x == 0 && thread == 0) scales[form] = 1 / scale;

  int column_block = 0, row_block = static_cast<int>(blockIdx.x);
  while (row_block > column_block) row_block -= ++column_block;
  const int tile = F::kPairs * column_block + thread / 16 % F::kPairs, place = thread % 8;
  const int word = 2 * (thread / F::kStepChunks) + thread / 8 % 2, column = F::element(tile, place);
  const bool symmetric = pairs[form].a == pairs[form].b;
  __align__(16) FormElement<T> high[F::kElements], low[F::kElements];
#pragma unroll
  for (int x = 0; x < F::kElements; ++x) {
    const int y = word * kPerWord + x % kPerWord;  // of lane x / kPerWord's chunk
    const int row_tile = F::kPairs * row_block + y / 2, row_place = 2 * (x / kPerWord) + y % 2;
    const int row = F::element(row_tile, row_place), ahead = 8 * (tile - row_tile) + place - row_place;
    float folded = 0;
    if (ahead >= 0) folded = scale * entry(row, column);
    if (ahead > 0) folded += symmetric ? folded : scale * entry(column, row);
    high[x] = static_cast<FormElement<T>>(folded);
    low[x] = static_cast<FormElement<T>>(folded - static_cast<float>(high[x]));
  }
  uint4* of_form = triangles + static_cast<size_t>(form) * F::kChunks + blockIdx.x * F::kSquareChunks + thread;
  of_form[0] = *reinterpret_cast<uint4*>(high);
  if (F::kParts == 2) of_form[F::kPartChunks] = *reinterpret_cast<uint4*>(low);
}

}  // namespace

void pack_forms(const Layer& layer, const FormPair* pairs, int count, PackedForms& forms, cudaStream_t stream) {
  for_element_and_size(layer.element, layer.value_stride, [&]<class T, int Size>() {
    using F = Forms<T, Size>;
    constexpr int kSide = kTile<Size>, kTiles = Size / kSide * (Size / kSide), kMaxima = kSplits * kTiles;
    constexpr int kSharedBytes = kStages * 2 * kSide * kDepth * 16;
    float* gram = forms.gram.at_least(static_cast<size_t>(count) * kSplits * Size * Size);
    float* largest = forms.largest.at_least(static_cast<size_t>(count) * kMaxima);
    float* scales = forms.scales.at_least(count);
    uint4* triangles = forms.triangles.at_least(static_cast<size_t>(count) * F::kChunks);
    allow_shared_memory(gram_kernel<T, Size>, kSharedBytes);
    gram_kernel<T, Size>
        <<<dim3(kTiles, count, kSplits), 2 * kSide, kSharedBytes, stream>>>(layer, pairs, gram, largest);
    check_launch("Gram matrices");
    constexpr int kSquares = F::kBlocks * (F::kBlocks + 1) / 2;
    pack_kernel<T, Size>
        <<<dim3(kSquares, count), F::kSquareChunks, 0, stream>>>(pairs, gram, largest, kMaxima, triangles, scales);
  });
  check_launch("packing Gram matrices");
}

}  // namespace laprox::cuda
