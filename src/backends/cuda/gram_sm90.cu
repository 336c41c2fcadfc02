#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/gram.cuh"
#include "backends/cuda/wgmma.cuh"

namespace laprox::cuda {

namespace {

/// A warpgroup makes 64 rows of the block's part, a warp 16 of them, 64 columns at a time.
template <class T, int Size>
__global__ void __launch_bounds__(GramBlock<T, Size>::kThreads)
    gram_kernel(Layer layer, const FormPair* pairs, float* gram, float* largest) {
  using G = GramBlock<T, Size>;
  constexpr int kColumnBlocks = G::kSide / 64, kSteps = G::kDepth / 2;
  extern __shared__ __align__(1024) uint4 shared[];
  const G block(layer, pairs, shared);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  float c[kColumnBlocks][8][4] = {};
  block.stream(publish_tiles, [&](const uint4* rows, const uint4* columns) {
    unsigned left[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint4 fragment = G::load_fragment(rows, warp_row + lane % 16, 2 * step + lane / 16);
      left[step][0] = fragment.x, left[step][1] = fragment.y, left[step][2] = fragment.z, left[step][3] = fragment.w;
    }
    const RightFactor right = RightFactor::panels(columns);
    start_wgmma();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int n = 0; n < kColumnBlocks; ++n) wgmma<T>(c[n], left[step], right + (n * 64 * G::kDepth + 2 * step), true);
    }
    commit_wgmma();
#pragma unroll
    for (auto& of_columns : c) wait_wgmma(of_columns);
  });

  float maximum = 0;
#pragma unroll
  for (int n = 0; n < kColumnBlocks; ++n) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      block.store(c[n][j], warp_row + lane_row(), 64 * n + 8 * j + 2 * lane_column(), gram, maximum);
    }
  }
  block.store_largest(maximum, largest);
}

}  // namespace

void partial_products_sm90(const Layer& layer, const FormPair* pairs, int count, float* gram, float* largest,
                           cudaStream_t stream) {
  for_half_and_size(layer.element, layer.value_stride, [&]<class T, int Size>() {
    GramBlock<T, Size>::launch(gram_kernel<T, Size>, layer, pairs, count, gram, largest, stream);
  });
}

}  // namespace laprox::cuda
