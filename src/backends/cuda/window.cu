#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/rows.cuh"
#include "backends/cuda/stream.cuh"

namespace laprox::cuda {

namespace {

/// The sums of x[q] over the four lanes that share the rows of an accumulator tile; lane (g, t) gets that of q = t.
__device__ inline float sum_over_columns(const float (&x)[4]) {
  // Two exchanges, each of which halves what a lane is responsible for.
  const bool high = lane_column() >= 2, odd = lane_column() % 2 == 1;
  const float a = (high ? x[2] : x[0]) + __shfl_xor_sync(~0U, high ? x[0] : x[2], 2);
  const float b = (high ? x[3] : x[1]) + __shfl_xor_sync(~0U, high ? x[1] : x[3], 2);
  return (odd ? b : a) + __shfl_xor_sync(~0U, odd ? a : b, 1);
}

/// The second pass over the keys: block (split * kv_heads + kv_head, group of query heads) keeps the row blocks of
/// queries `query_block` of its heads and streams its share of the context's keys. A warp has all resident queries of
/// one head and whole rows of keys, so it sums a key's column alone. Query blocks but the first one add to what is
/// there.
template <class T, int Size, bool WithSums>
__global__ void __launch_bounds__(kThreads, Streaming<T, Size>::kResidentBlocks)
    window_kernel(Layer layer, QueryRange range, int row_blocks, int query_block, int splits, const RowSoftmax* softmax,
                  float* sums, float* squares) {
  using S = Streaming<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const int kv_head = static_cast<int>(blockIdx.x) % layer.kv_heads,
            split = static_cast<int>(blockIdx.x) / layer.kv_heads;
  const int head_in_group = static_cast<int>((blockIdx.y * blockDim.x + threadIdx.x) / 32);
  const bool idle = head_in_group >= layer.group;
  const int row_block = query_block * layer.group + (idle ? 0 : head_in_group);
  const RowBlock rows(layer, range, kv_head, row_block, S::kResident);
  const int tiles = (layer.context + kTile - 1) / kTile;
  const int first = static_cast<int>(static_cast<long long>(tiles) * split / splits);
  const int last = static_cast<int>(static_cast<long long>(tiles) * (split + 1) / splits);

  Resident<T, Size> queries;
  queries.load(static_cast<const T*>(layer.q) + (static_cast<size_t>(rows.head) * layer.queries + rows.first) * Size,
               idle ? 0 : rows.count());
  RowSoftmax of_row[S::kColumns][2];
#pragma unroll
  for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = row_block * S::kResident + 8 * n + 2 * lane_column() + e;
      of_row[n][e] = softmax[static_cast<size_t>(kv_head) * row_blocks * S::kResident + row];
    }
  }

  const LogitForm form(layer);
  const T* keys = static_cast<const T*>(layer.k) + static_cast<size_t>(kv_head) * layer.tokens * Size;
  float* head_sums = WithSums ? sums + static_cast<size_t>(rows.head) * layer.context : nullptr;
  float* head_squares = squares + static_cast<size_t>(rows.head) * layer.context;
  stream_tiles<S>(keys, layer.tokens, first, last, shared, [&](int tile, const uint4* chunks) {
    if (idle) return;
#pragma unroll 1
    for (int step = 0; step < kTile; step += kStep) {
      const int first_key = tile * kTile + step;
      float sum[4] = {}, square[4] = {};  // of the keys first_key + 8 q + g, over the lane's columns
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float c[S::kColumns][4];
        products<T, Size>(c, chunks, step + 16 * i, queries);
        form.apply_cap(c);
        if (!rows.sees_all(layer, first_key + 16 * i, first_key + 16 * i + 16)) {
          hide_unseen(c, layer, rows, first_key + 16 * i, form);
        }
#pragma unroll
        for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float x = __fmaf_rn(c[n][e], form.factor, -of_row[n][e % 2].maximum);
            const float weight = fast_exp2(x) * of_row[n][e % 2].inverse_sum;
            if (WithSums) sum[2 * i + e / 2] += weight;
            square[2 * i + e / 2] += weight * weight;
          }
        }
      }
      // Lane (g, t) stores the key of q = t.
      const int key = first_key + 8 * lane_column() + lane_row();
      const float key_square = sum_over_columns(square);
      const float key_sum = WithSums ? sum_over_columns(sum) : 0;
      if (key < layer.context) {
        head_squares[key] = query_block > 0 ? head_squares[key] + key_square : key_square;
        if (WithSums) head_sums[key] = query_block > 0 ? head_sums[key] + key_sum : key_sum;
      }
    }
  });
}

void window_columns_sm80(const Layer& layer, QueryRange range, const RowSoftmax* softmax, float* sums, float* squares,
                         cudaStream_t stream) {
  const RowLayout layout(layer, range);
  const int groups = (layer.group + kWarps - 1) / kWarps;
  for_element_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    using S = Streaming<T, Size>;
    const int splits = shares_of<S>((layer.context + kTile - 1) / kTile, layer.kv_heads * groups);
    const auto kernel = sums ? window_kernel<T, Size, true> : window_kernel<T, Size, false>;
    allow_shared_memory(kernel, S::kSharedBytes);
    for (int query_block = 0; query_block < layout.row_blocks / layer.group; ++query_block) {
      kernel<<<dim3(splits * layer.kv_heads, groups), kThreads, S::kSharedBytes, stream>>>(
          layer, range, layout.row_blocks, query_block, splits, softmax, sums, squares);
    }
  });
  check_launch("window columns");
}

}  // namespace

void window_columns(const Layer& layer, QueryRange range, const RowSoftmax* softmax, float* sums, float* squares,
                    cudaStream_t stream) {
  (use_sm90(layer) ? window_columns_sm90 : window_columns_sm80)(layer, range, softmax, sums, squares, stream);
}

}  // namespace laprox::cuda
