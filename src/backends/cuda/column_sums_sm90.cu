#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/stream_sm90.cuh"

namespace laprox::cuda {

namespace {

constexpr int kGroupKeys = 64;  ///< of a warpgroup, 16 per warp
constexpr int kKeyGroups = 2;   ///< warpgroups per block
constexpr int kQueries = 128;   ///< streamed at a time

/// Shape of a stream (see stream.cuh) of queries, whose softmaxes stand behind them in the tile.
template <class T, int Size>
struct QueryTiles : HalfTiles<T, Size, kQueries> {
  using Rows = HalfTiles<T, Size, kQueries>;
  static constexpr int kSoftmaxChunks = kQueries * static_cast<int>(sizeof(RowSoftmax)) / 16;
  static constexpr int kTileBytes = Rows::kTileBytes + 16 * kSoftmaxChunks;
  static constexpr int kStages = 3;
  static constexpr int kSharedBytes = kStages * kTileBytes;
  static constexpr int kResidentBlocks = Size <= 128 ? 2 : 1;
  static constexpr int kBlockThreads = 128 * kKeyGroups;
};

/// Where the softmaxes of one head's queries are: its row blocks, `stride` chunks of 16 bytes apart.
struct SoftmaxRows {
  const uint4* first;
  int stride, row_blocks;

  /// Starts copying those of the queries of a tile; of queries that there are not they become 0.
  template <class Shape>
  __device__ void start(uint4* target, int tile) const {
    constexpr int kChunks = kRowBlockRows * static_cast<int>(sizeof(RowSoftmax)) / 16;  // of a row block
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= Shape::kSoftmaxChunks) return;
    const int row_block = tile * (kQueries / kRowBlockRows) + thread / kChunks;
    const bool real = row_block < row_blocks;
    const uint4* source = first + (real ? row_block * static_cast<size_t>(stride) + thread % kChunks : 0);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target + thread)), "l"(source),
                 "r"(real ? 16 : 0));
  }
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
      if (!sees(layer, query, key + 8 * (e / 2))) c[j][e] = form.hidden();
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
__global__ void __launch_bounds__(QueryTiles<T, Size>::kBlockThreads, QueryTiles<T, Size>::kResidentBlocks)
    all_columns_kernel(Layer layer, int row_blocks, const RowSoftmax* softmax, float* sums) {
  using S = QueryTiles<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const int head = static_cast<int>(blockIdx.x), kv_head = head / layer.group;
  // Earlier keys are seen by more queries: they begin first.
  const int block_key = static_cast<int>(blockIdx.y) * kKeyGroups * kGroupKeys;
  const int warp = static_cast<int>(threadIdx.x) / 32, group_key = block_key + warp / 4 * kGroupKeys;
  const int warp_key = group_key + warp % 4 * 16, key = warp_key + lane_row();
  const int window = layer.sliding_window > 0 ? layer.sliding_window : layer.queries;
  const long long last_query = min(static_cast<long long>(layer.queries),
                                   static_cast<long long>(block_key) + kKeyGroups * kGroupKeys - 1 + window);
  const int first = block_key / kQueries, last = static_cast<int>((last_query + kQueries - 1) / kQueries);

  LeftRows<T, Size> keys;
  keys.load(static_cast<const T*>(layer.k) +
                (static_cast<size_t>(kv_head) * layer.tokens + min(warp_key, layer.context)) * Size,
            layer.context - warp_key);
  const int head_chunks = kRowBlockRows * static_cast<int>(sizeof(RowSoftmax)) / 16;
  const SoftmaxRows rows{reinterpret_cast<const uint4*>(softmax) +
                             (static_cast<size_t>(kv_head) * row_blocks + head % layer.group) * head_chunks,
                         layer.group * head_chunks, row_blocks / layer.group};
  const T* queries = static_cast<const T*>(layer.q) + static_cast<size_t>(head) * layer.queries * Size;
  const LogitForm form(layer);
  float columns[2] = {};
  const auto add = [&](float(&c)[8][4], int first_query, const uint4* softmaxes) {
    form.apply_cap(c);
    const bool all = first_query >= group_key + kGroupKeys - 1 && first_query + 63 < group_key + window;
    if (!all) hide_unseen_queries(c, layer, key, first_query, form);
    add_weights(columns, c, reinterpret_cast<const float4*>(softmaxes), form.factor);
  };
  stream_tiles<S>(
      queries, layer.queries, first, last, shared,
      [&](int tile, const uint4* chunks) {
        const uint4* softmaxes = chunks + S::Rows::kTileBytes / 16;
#pragma unroll 1
        for (int part = 0; part < S::kParts; ++part) {
          float c[8][4];
          start_products<S>(c, keys, chunks, part);
          wait_wgmma(c);
          add(c, tile * kQueries + 64 * part, softmaxes + S::kSoftmaxChunks / 2 * part);
        }
      },
      [&](int tile, uint4* chunks) { rows.start<S>(chunks + S::Rows::kTileBytes / 16, tile); });

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
    constexpr int kKeys = kKeyGroups * kGroupKeys;
    const dim3 grid(layer.query_heads, (layer.context + kKeys - 1) / kKeys);
    all_columns_kernel<T, Size>
        <<<grid, S::kBlockThreads, S::kSharedBytes, stream>>>(layer, layout.row_blocks, softmax, sums);
  });
  check_launch("column sums");
}

}  // namespace laprox::cuda
