#include "backends/cuda/half_outputs.cuh"
#include "backends/cuda/stream_sm90.cuh"

namespace laprox::cuda {

namespace {

template <class T, int Size>
struct TokenRows : HalfTiles<T, Size, kTile> {
  static constexpr int kRowBlocks = 4;  ///< per block, two warps each
  static constexpr int kBlockThreads = 64 * kRowBlocks;
};
/// Tiles of keys for wgmma, behind which the values of the same tokens stand.
template <class T, int Size>
struct RestTiles : TokenRows<T, Size> {
  using Values = TokenRows<__half, Size>;
  static constexpr int kValueChunks = TokenRows<T, Size>::kTileBytes / 16;  ///< where values begin
  static constexpr int kTileBytes = 16 * kValueChunks + Values::kTileBytes;
  static constexpr int kStages = 4;
  static constexpr int kSharedBytes = kStages * kTileBytes;
  static constexpr int kResidentBlocks = 1;  ///< what registers allow
};

/// Adds the values of a tile, weighted, to a warpgroup's outputs. Each tile's sum begins at 0: tensor cores cut sums
/// off instead of rounding them, and adding it to the rest is rounded.
template <class S, int Size>
__device__ inline void add_values(float (&outputs)[Size / 8][4], const TileWeights& weights, const uint4* values) {
  constexpr int kPanels = Size / 64;
  float sums[kPanels][8][4];
  start_wgmma();
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    const RightFactor right = RightFactor::panels(values + panel * S::kPanelChunks);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const RightFactor of_step = right + k * 16 * 8;  // 16 tokens
      wgmma<__half, true>(sums[panel], weights.low[k], of_step, k > 0);
      wgmma<__half, true>(sums[panel], weights.high[k], of_step, true);
    }
  }
  commit_wgmma();
#pragma unroll
  for (auto& of_panel : sums) wait_wgmma(of_panel);
#pragma unroll
  for (int j = 0; j < Size / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) outputs[j][e] += sums[j / 8][j % 8][e];
  }
}

/// As in half_outputs.cu: block (split * kv_heads + kv_head, group of row blocks).
template <class T, int Size>
__global__ void __launch_bounds__(RestTiles<T, Size>::kBlockThreads, RestTiles<T, Size>::kResidentBlocks)
    rests_kernel(HalfTerms terms, int row_blocks, int splits, float* parts, float* remainders) {
  using S = RestTiles<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const Layer& layer = terms.layer;
  const RestBlock<S> block(terms, row_blocks, splits);
  const bool group_idle = block.first_block + static_cast<int>(threadIdx.x) / 128 * 2 >= row_blocks;
  const T* keys = static_cast<const T*>(layer.k) + static_cast<size_t>(block.kv_head) * layer.tokens * Size;
  const __half* values = terms.values + static_cast<size_t>(block.kv_head) * layer.tokens * Size;
  LeftRows<T, Size> queries;
  queries.load_queries(
      static_cast<const T*>(layer.q) + (static_cast<size_t>(block.rows.head) * layer.queries + block.rows.first) * Size,
      block.idle ? 0 : block.rows.count());
  RestRows of_rows(terms, block.first_row, !block.idle);
  float outputs[Size / 8][4] = {};
  const LogitForm form(layer);
  stream_tiles<S>(
      keys, layer.tokens, block.first, block.last, shared,
      [&](int tile, const uint4* chunks) {
        if (group_idle) return;
        float c[8][4];
        start_products<S>(c, queries, chunks, 0);
        wait_wgmma(c);
        finish_products(c, layer, block.rows, tile * kTile, form);
        TileWeights weights;
        of_rows.weigh(c, form.factor, tile * kTile, weights);
        add_values<S, Size>(outputs, weights, chunks + S::kValueChunks);
      },
      [&](int tile, uint4* chunks) {
        start_tile<typename S::Values>(chunks + S::kValueChunks, values, layer.tokens, tile);
      });
  if (block.idle) return;
  const size_t row = static_cast<size_t>(block.split) * layer.kv_heads * terms.rows + block.first_row;
  of_rows.template store<Size>(outputs, terms.value_scales[block.kv_head] / kWeightScale, parts + row * Size,
                               remainders + row);
}

}  // namespace

int rest_parts_sm90(const HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream) {
  return launch_rests<RestTiles>(terms, scratch, stream, []<class T, int Size>() { return rests_kernel<T, Size>; });
}

}  // namespace laprox::cuda
