#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/forms.cuh"
#include "backends/cuda/gram.cuh"

namespace laprox::cuda {

namespace {

/// A warp makes 32 rows and half of the columns of the block's part.
template <class T, int Size>
__global__ void __launch_bounds__(GramBlock<T, Size>::kThreads)
    gram_kernel(Layer layer, const FormPair* pairs, float* gram, float* largest) {
  using G = GramBlock<T, Size>;
  constexpr int kColumnTiles = G::kSide / 16;
  extern __shared__ __align__(1024) uint4 shared[];
  const G block(layer, pairs, shared);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * (G::kSide / 2);
  float c[2][kColumnTiles][4] = {};
  const auto multiply_stage = [&](const uint4* rows, const uint4* columns) {
#pragma unroll
    for (int step = 0; step < G::kDepth / 2; ++step) {
      uint4 left[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        left[i] = G::load_fragment(rows, warp_row + 16 * i + lane % 16, 2 * step + lane / 16);
      }
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        // Two column tiles: lanes 0 .. 15 point to both chunks of the first one, the others to those of the second one.
        const uint4 right =
            G::load_fragment(columns, warp_column + 8 * (n + lane / 16) + lane % 8, 2 * step + lane / 8 % 2);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_step<T>(c[i][n], left[i], make_uint2(right.x, right.y));
          multiply_step<T>(c[i][n + 1], left[i], make_uint2(right.z, right.w));
        }
      }
    }
  };
  block.stream([] {}, multiply_stage);

  float maximum = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      block.store(c[i][n], warp_row + 16 * i + lane_row(), warp_column + 8 * n + 2 * lane_column(), gram, maximum);
    }
  }
  block.store_largest(maximum, largest);
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
  constexpr int kSplits = GramBlock<T, Size>::kSplits;
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
  // All loads come first, so that they travel together; what lies below the diagonal is not used.
  float folded[F::kElements];
  int ahead[F::kElements];
#pragma unroll
  for (int x = 0; x < F::kElements; ++x) {
    const int y = word * kPerWord + x % kPerWord;  // of lane x / kPerWord's chunk
    const int row_tile = F::kPairs * row_block + y / 2, row_place = 2 * (x / kPerWord) + y % 2;
    const int row = F::element(row_tile, row_place);
    ahead[x] = 8 * (tile - row_tile) + place - row_place;
    folded[x] = symmetric ? 2 * entry(row, column) : entry(row, column) + entry(column, row);
  }
  __align__(16) FormElement<T> high[F::kElements], low[F::kElements];
#pragma unroll
  for (int x = 0; x < F::kElements; ++x) {
    const float value = ahead[x] < 0 ? 0.0F : folded[x] * (ahead[x] > 0 ? scale : scale / 2);
    high[x] = static_cast<FormElement<T>>(value);
    low[x] = static_cast<FormElement<T>>(value - static_cast<float>(high[x]));
  }
  uint4* of_form = triangles + static_cast<size_t>(form) * F::kChunks + blockIdx.x * F::kSquareChunks + thread;
  of_form[0] = *reinterpret_cast<uint4*>(high);
  if (F::kParts == 2) of_form[F::kPartChunks] = *reinterpret_cast<uint4*>(low);
}

}  // namespace

void pack_forms(const Layer& layer, const FormPair* pairs, int count, PackedForms& forms, cudaStream_t stream) {
  for_element_and_size(layer.element, layer.value_stride, [&]<class T, int Size>() {
    using F = Forms<T, Size>;
    using G = GramBlock<T, Size>;
    constexpr int kMaxima = G::kSplits * G::kTiles, kSquares = F::kBlocks * (F::kBlocks + 1) / 2;
    float* gram = forms.gram.at_least(static_cast<size_t>(count) * G::kSplits * Size * Size);
    float* largest = forms.largest.at_least(static_cast<size_t>(count) * kMaxima);
    float* scales = forms.scales.at_least(count);
    uint4* triangles = forms.triangles.at_least(static_cast<size_t>(count) * F::kChunks);
    if (use_sm90(layer)) {
      partial_products_sm90(layer, pairs, count, gram, largest, stream);
    } else {
      G::launch(gram_kernel<T, Size>, layer, pairs, count, gram, largest, stream);
    }
    pack_kernel<T, Size>
        <<<dim3(kSquares, count), F::kSquareChunks, 0, stream>>>(pairs, gram, largest, kMaxima, triangles, scales);
  });
  check_launch("packing Gram matrices");
}

}  // namespace laprox::cuda
