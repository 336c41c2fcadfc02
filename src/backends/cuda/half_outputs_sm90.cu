#include "backends/cuda/half_outputs.cuh"
#include "backends/cuda/ring_sm90.cuh"

namespace laprox::cuda {

namespace {

/// Shape of a ring of keys, behind which the values of the same tokens stand.
template <class T, int Size>
struct RestTiles : HalfTiles<T, Size> {
  using Values = HalfTiles<__half, Size>;
  static constexpr int kGroups = 2, kRowBlocks = 2 * kGroups;               ///< row blocks of two warps each
  static constexpr int kValueChunks = HalfTiles<T, Size>::kTileBytes / 16;  ///< where values begin
  static constexpr int kTileBytes = 16 * kValueChunks + Values::kTileBytes;
  static constexpr int kStages = 6 * 128 / Size;
  static constexpr int kSharedBytes = kStages * kTileBytes;
  static constexpr int kResidentBlocks = 1;  ///< what registers allow
};

/// Starts the sums of a tile's values, weighted, over 64 of their components, the `panel`-th ones. Each tile's sum
/// begins at 0: tensor cores cut sums off instead of rounding them, and adding it to the rest is rounded.
template <class S>
__device__ inline void start_values(float (&sums)[8][4], const TileWeights& weights, const uint4* values, int panel) {
  const RightFactor right = RightFactor::panels(values + panel * S::kPanelChunks);
  start_wgmma();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const RightFactor of_step = right + k * 16 * 8;  // 16 tokens
    wgmma<__half, true>(sums, weights.low[k], of_step, k > 0);
    wgmma<__half, true>(sums, weights.high[k], of_step, true);
  }
  commit_wgmma();
}

/// outputs, from component 64 panel on, += sums.
template <int Tiles>
__device__ inline void add_panel(float (&outputs)[Tiles][4], const float (&sums)[8][4], int panel) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) outputs[8 * panel + j][e] += sums[j][e];
  }
}

/// As in half_outputs.cu: block (split * kv_heads + kv_head, group of row blocks).
template <class T, int Size>
__global__ void __launch_bounds__(Ring<RestTiles<T, Size>>::kThreads, 1)
    rests_kernel(HalfTerms terms, const __grid_constant__ CUtensorMap keys, const __grid_constant__ CUtensorMap values,
                 int row_blocks, int splits, float* parts, float* remainders) {
  using S = RestTiles<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const Layer& layer = terms.layer;
  __shared__ typename Ring<S>::Signals signals;
  const RestBlock<S> block(terms, row_blocks, splits);
  const Ring<S> ring(shared, signals, block.first, block.last);
  if (ring.fills()) {
    ring.fill([&](int tile, uint4* chunks, Arrival& arrival) {
      arrival.expect(S::kTileBytes);
      start_panels<Size>(chunks, keys, tile * kTile, block.kv_head, arrival);
      start_panels<Size>(chunks + S::kValueChunks, values, tile * kTile, block.kv_head, arrival);
    });
    return;
  }
  ring.begin_reading();

  LeftRows<T, Size> queries;
  queries.load_queries(
      static_cast<const T*>(layer.q) + (static_cast<size_t>(block.rows.head) * layer.queries + block.rows.first) * Size,
      block.idle ? 0 : block.rows.count());
  RestRows of_rows(terms, block.first_row, !block.idle);
  float outputs[Size / 8][4] = {};
  const LogitForm form(layer);
  TileWeights weights = {};
  // Each step has the products of one tile's values and of the next one's keys, whose weights are formed meanwhile.
  // Some are of no use, before the first tile and behind the last one: where a condition kept them away, the compiler
  // would have all products wait.
  for (int n = -1; n < ring.count(); ++n) {
    const bool values_count = n >= 0, keys_count = n + 1 < ring.count();
    const uint4* of_values = ring.tile(max(n, 0)) + S::kValueChunks;
    const int first_key = (ring.first() + n + 1) * kTile;
    float c[8][4], sums[8][4];
    ring.wait_for(n + 1);
    start_products<S>(c, queries, ring.tile(n + 1));
    start_values<typename S::Values>(sums, weights, of_values, 0);
    wait_wgmma<1>(c);
    if (keys_count) {
      finish_products(c, layer, block.rows, first_key, form);
      of_rows.weigh(c, 0, form.factor, first_key);
    }
    wait_wgmma(sums);
    if (values_count) add_panel(outputs, sums, 0);
    if constexpr (Size > 64) start_values<typename S::Values>(sums, weights, of_values, 1);
    if (keys_count) of_rows.weigh(c, 1, form.factor, first_key);
    if constexpr (Size > 64) {
      wait_wgmma(sums);
      if (values_count) add_panel(outputs, sums, 1);
    }
    if (values_count) ring.release(n);
    weights.take(c);
  }
  if (block.idle) return;
  const size_t row = static_cast<size_t>(block.split) * layer.kv_heads * terms.rows + block.first_row;
  of_rows.template store<Size>(outputs, terms.value_scales[block.kv_head] / kWeightScale, parts + row * Size,
                               remainders + row);
}

}  // namespace

int rest_parts_sm90(const HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream) {
  return launch_rests<RestTiles>(
      terms, scratch, [&]<class T, int Size>(dim3 grid, int row_blocks, int splits, float* parts, float* remainders) {
        using S = RestTiles<T, Size>;
        const Layer& layer = terms.layer;
        allow_shared_memory(rests_kernel<T, Size>, S::kSharedBytes);
        rests_kernel<T, Size><<<grid, Ring<S>::kThreads, S::kSharedBytes, stream>>>(
            terms, tile_map(layer.k, Size, layer.tokens, layer.kv_heads),
            tile_map(terms.values, Size, layer.tokens, layer.kv_heads), row_blocks, splits, parts, remainders);
      });
}

}  // namespace laprox::cuda
