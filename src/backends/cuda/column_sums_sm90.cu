#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/ring_sm90.cuh"

namespace laprox::cuda {

namespace {

constexpr int kGroupKeys = 64;   ///< of a warpgroup, 16 per warp
constexpr int kQueries = kTile;  ///< streamed at a time

/// Shape of a ring of queries, whose softmaxes stand behind them in the tile: their two row blocks' ones.
template <class T, int Size>
struct QueryTiles : HalfTiles<T, Size> {
  using Rows = HalfTiles<T, Size>;
  static constexpr int kRowBlockBytes = kRowBlockRows * static_cast<int>(sizeof(RowSoftmax));
  static constexpr int kTileBytes = Rows::kTileBytes + 1024;  ///< panels begin at multiples of 1024
  static constexpr int kStages = 12 * 128 / Size;
  static constexpr int kSharedBytes = kStages * kTileBytes;
  static constexpr int kGroups = Size <= 128 ? 4 : 2;  ///< as registers allow
  static constexpr int kBlockKeys = kGroups * kGroupKeys;
};

/// Hides the products of a lane's two keys, `key` and key + 8, with the queries first_query + 8 j + 2 t and the next
/// one that do not see them.
__device__ inline void hide_unseen_queries(float (&c)[8][4], const Layer& layer, int key, int first_query,
                                           const LogitForm& form) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int query = first_query + 8 * j + 2 * lane_column() + e % 2;
      if (query >= layer.queries || !sees(layer, query, key + 8 * (e / 2))) c[j][e] = form.hidden();
    }
  }
}

/// Adds the weights of 64 queries, whose softmaxes `rows` holds, to the sums of a lane's two keys.
__device__ inline void add_weights(float (&sums)[2], const float (&c)[8][4], const float4* rows, float factor) {
  float of_tile[2] = {};  // short chains of sums keep their digits
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float4 two = rows[4 * j + lane_column()];  // maximum and inverse sum of two queries
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      of_tile[half] = __fmaf_rn(fast_exp2(__fmaf_rn(c[j][2 * half], factor, -two.x)), two.y, of_tile[half]);
      of_tile[half] = __fmaf_rn(fast_exp2(__fmaf_rn(c[j][2 * half + 1], factor, -two.z)), two.w, of_tile[half]);
    }
  }
  sums[0] += of_tile[0];
  sums[1] += of_tile[1];
}

/// As in column_sums.cu: block (head, group of keys) keeps keys and streams the queries that see them. A lane has the
/// keys g and g + 8 of its warp's 16.
template <class T, int Size>
__global__ void __launch_bounds__(Ring<QueryTiles<T, Size>>::kThreads, 1)
    all_columns_kernel(Layer layer, const __grid_constant__ CUtensorMap queries, int row_blocks,
                       const RowSoftmax* softmax, float* sums) {
  using S = QueryTiles<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  __shared__ typename Ring<S>::Signals signals;
  const int head = static_cast<int>(blockIdx.y), kv_head = head / layer.group;
  // Earlier keys are seen by more queries: they begin first.
  const int block_key = static_cast<int>(blockIdx.x) * S::kBlockKeys;
  const int window = layer.sliding_window > 0 ? layer.sliding_window : layer.queries;
  const long long last_query =
      min(static_cast<long long>(layer.queries), static_cast<long long>(block_key) + S::kBlockKeys - 1 + window);
  const int first = block_key / kQueries, last = static_cast<int>((last_query + kQueries - 1) / kQueries);
  const Ring<S> ring(shared, signals, first, last);
  if (ring.fills()) {
    // Where there is no second row block, the first one stands in its place: its queries are hidden.
    const RowSoftmax* of_head =
        softmax + (static_cast<size_t>(kv_head) * row_blocks + head % layer.group) * kRowBlockRows;
    const size_t stride = static_cast<size_t>(layer.group) * kRowBlockRows;
    const int last_block = row_blocks / layer.group - 1;
    ring.fill([&](int tile, uint4* chunks, Arrival& arrival) {
      arrival.expect(S::Rows::kTileBytes + 2 * S::kRowBlockBytes);
      start_panels<Size>(chunks, queries, tile * kQueries, head, arrival);
      uint4* softmaxes = chunks + S::Rows::kTileBytes / 16;
      arrival.start_copy(softmaxes, of_head + 2 * tile * stride, S::kRowBlockBytes);
      arrival.start_copy(softmaxes + S::kRowBlockBytes / 16, of_head + min(2 * tile + 1, last_block) * stride,
                         S::kRowBlockBytes);
    });
    return;
  }
  ring.begin_reading();

  const int warp = static_cast<int>(threadIdx.x) / 32, group_key = block_key + warp / 4 * kGroupKeys;
  const int warp_key = group_key + warp % 4 * 16, key = warp_key + lane_row();
  LeftRows<T, Size> keys;
  keys.load(static_cast<const T*>(layer.k) +
                (static_cast<size_t>(kv_head) * layer.tokens + min(warp_key, layer.context)) * Size,
            layer.context - warp_key);
  const LogitForm form(layer);
  float columns[2] = {};
  ring.read([&](int tile, const uint4* chunks) {
    float c[8][4];
    start_products<S>(c, keys, chunks);
    wait_wgmma(c);
    form.apply_cap(c);
    const int first_query = tile * kQueries, end = first_query + kQueries;
    const bool all = first_query >= group_key + kGroupKeys - 1 && end <= min(layer.queries, group_key + window);
    if (!all) hide_unseen_queries(c, layer, key, first_query, form);
    add_weights(columns, c, reinterpret_cast<const float4*>(chunks + S::Rows::kTileBytes / 16), form.factor);
  });

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = columns[half];
    sum += __shfl_xor_sync(~0U, sum, 1);
    sum += __shfl_xor_sync(~0U, sum, 2);
    const int at = key + 8 * half;
    if (lane_column() == 0 && at < layer.context) sums[static_cast<size_t>(head) * layer.context + at] = sum;
  }
}

}  // namespace

void all_columns_sm90(const Layer& layer, const RowSoftmax* softmax, float* sums, cudaStream_t stream) {
  const RowLayout layout(layer, {0, layer.queries});
  for_half_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    using S = QueryTiles<T, Size>;
    allow_shared_memory(all_columns_kernel<T, Size>, S::kSharedBytes);
    const dim3 grid((layer.context + S::kBlockKeys - 1) / S::kBlockKeys, layer.query_heads);
    all_columns_kernel<T, Size><<<grid, Ring<S>::kThreads, S::kSharedBytes, stream>>>(
        layer, tile_map(layer.q, Size, layer.queries, layer.query_heads), layout.row_blocks, softmax, sums);
  });
  check_launch("column sums");
}

}  // namespace laprox::cuda
