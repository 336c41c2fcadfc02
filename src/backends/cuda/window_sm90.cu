#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/stream_sm90.cuh"

namespace laprox::cuda {

namespace {

/// The sums over a warp's rows of x[2 j + e], a lane's share for key 8 j + 2 t + e; lane l gets those of the keys 2 l
/// and 2 l + 1.
__device__ inline float2 sum_over_rows(const float (&x)[16]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float a[8], b[4], c[2];  // three exchanges, each of which halves what a lane is responsible for
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool high = lane & 16;
    a[i] = (high ? x[8 + i] : x[i]) + __shfl_xor_sync(~0U, high ? x[i] : x[8 + i], 16);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool high = lane & 8;
    b[i] = (high ? a[4 + i] : a[i]) + __shfl_xor_sync(~0U, high ? a[i] : a[4 + i], 8);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool high = lane & 4;
    c[i] = (high ? b[2 + i] : b[i]) + __shfl_xor_sync(~0U, high ? b[i] : b[2 + i], 4);
  }
  return make_float2(c[0], c[1]);
}

/// Adds up what the two warps of a row block have; the first one gets the sums. To be called once per tile, whose
/// barrier keeps what is exchanged from being overwritten.
template <int N>
__device__ inline void sum_over_warps(float2 (&mine)[N], float2 (&exchange)[N][32]) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32,
            barrier = 1 + warp / 2;
  if (warp % 2 == 1) {
#pragma unroll
    for (int i = 0; i < N; ++i) exchange[i][lane] = mine[i];
    asm volatile("bar.arrive %0, 64;" ::"r"(barrier) : "memory");
  } else {
    asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory");
#pragma unroll
    for (int i = 0; i < N; ++i) mine[i] = make_float2(mine[i].x + exchange[i][lane].x, mine[i].y + exchange[i][lane].y);
  }
}

/// Stores the sums of the keys first_key + 2 l and the next one, or adds them to what is there.
__device__ inline void store(float2 sums, int first_key, int keys, bool add, float* of_head) {
  const int key = first_key + static_cast<int>(threadIdx.x) % 32 * 2;
  if (key < keys) of_head[key] = add ? of_head[key] + sums.x : sums.x;
  if (key + 1 < keys) of_head[key + 1] = add ? of_head[key + 1] + sums.y : sums.y;
}

/// The second pass over the keys, as in window.cu: block (split * kv_heads + kv_head, group of query heads).
template <class T, int Size, bool WithSums>
__global__ void __launch_bounds__(KeyTiles<T, Size>::kBlockThreads, KeyTiles<T, Size>::kResidentBlocks)
    window_kernel(Layer layer, QueryRange range, int row_blocks, int query_block, int splits, const RowSoftmax* softmax,
                  float* sums, float* squares) {
  using S = KeyTiles<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  constexpr int kColumns = WithSums ? 2 : 1;  // squares, and sums
  __shared__ float2 exchange[S::kRowBlocks][kColumns][32];
  const int kv_head = static_cast<int>(blockIdx.x) % layer.kv_heads,
            split = static_cast<int>(blockIdx.x) / layer.kv_heads;
  const int warp = static_cast<int>(threadIdx.x) / 32, first_head = static_cast<int>(blockIdx.y) * S::kRowBlocks;
  const int head_in_group = first_head + warp / 2;
  const bool idle = head_in_group >= layer.group, group_idle = first_head + warp / 4 * 2 >= layer.group;
  const int row_block = query_block * layer.group + (idle ? 0 : head_in_group);
  const RowBlock rows(layer, range, kv_head, row_block, kRowBlockRows);
  const int tiles = (layer.context + kTile - 1) / kTile;
  const int first = static_cast<int>(static_cast<long long>(tiles) * split / splits);
  const int last = static_cast<int>(static_cast<long long>(tiles) * (split + 1) / splits);

  LeftRows<T, Size> queries;
  queries.load_queries(
      static_cast<const T*>(layer.q) + (static_cast<size_t>(rows.head) * layer.queries + rows.first) * Size,
      idle ? 0 : rows.count());
  RowSoftmax of_row[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row_block * kRowBlockRows + first_warp_row() + 8 * half + lane_row();
    of_row[half] = softmax[static_cast<size_t>(kv_head) * row_blocks * kRowBlockRows + row];
  }

  const LogitForm form(layer);
  const T* keys = static_cast<const T*>(layer.k) + static_cast<size_t>(kv_head) * layer.tokens * Size;
  const size_t of_head = static_cast<size_t>(rows.head) * layer.context;
  stream_tiles<S>(keys, layer.tokens, first, last, shared, [&](int tile, const uint4* chunks) {
    if (group_idle) return;
    float c[8][4];
    start_products<S>(c, queries, chunks);
    wait_wgmma(c);
    finish_products(c, layer, rows, tile * kTile, form);
    float sum[16] = {}, square[16] = {};  // over the lane's two rows
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const RowSoftmax& of = of_row[e / 2];
        const float weight = fast_exp2(__fmaf_rn(c[j][e], form.factor, -of.maximum)) * of.inverse_sum;
        if (WithSums) sum[2 * j + e % 2] += weight;
        square[2 * j + e % 2] = __fmaf_rn(weight, weight, square[2 * j + e % 2]);
      }
    }
    float2 of_keys[kColumns] = {sum_over_rows(square)};
    if constexpr (WithSums) of_keys[1] = sum_over_rows(sum);
    sum_over_warps(of_keys, exchange[warp / 2]);
    if (idle || warp % 2 == 1) return;
    store(of_keys[0], tile * kTile, layer.context, query_block > 0, squares + of_head);
    if constexpr (WithSums) store(of_keys[1], tile * kTile, layer.context, query_block > 0, sums + of_head);
  });
}

}  // namespace

void window_columns_sm90(const Layer& layer, QueryRange range, const RowSoftmax* softmax, float* sums, float* squares,
                         cudaStream_t stream) {
  const RowLayout layout(layer, range);
  for_half_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    using S = KeyTiles<T, Size>;
    const int groups = (layer.group + S::kRowBlocks - 1) / S::kRowBlocks;
    const int splits = shares_of<S>((layer.context + kTile - 1) / kTile, layer.kv_heads * groups);
    const auto kernel = sums ? window_kernel<T, Size, true> : window_kernel<T, Size, false>;
    allow_shared_memory(kernel, S::kSharedBytes);
    for (int query_block = 0; query_block < layout.row_blocks / layer.group; ++query_block) {
      kernel<<<dim3(splits * layer.kv_heads, groups), S::kBlockThreads, S::kSharedBytes, stream>>>(
          layer, range, layout.row_blocks, query_block, splits, softmax, sums, squares);
    }
  });
  check_launch("window columns");
}

}  // namespace laprox::cuda
