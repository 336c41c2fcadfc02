#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/rows.cuh"
#include "backends/cuda/stream.cuh"

namespace laprox::cuda {

namespace {

/// The roles exchanged: block (head, group of key blocks) keeps keys and streams the queries that see them, so that a
/// lane sums its keys' columns in registers over all queries, and nothing of size tokens x tokens is ever stored.
template <class T, int Size>
__global__ void __launch_bounds__(kThreads, Streaming<T, Size>::kResidentBlocks)
    all_columns_kernel(Layer layer, int row_blocks, const RowSoftmax* softmax, float* sums) {
  using S = Streaming<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const int head = static_cast<int>(blockIdx.x), kv_head = head / layer.group;
  // Earlier keys are seen by more queries: they begin first.
  const int block_key = static_cast<int>(blockIdx.y) * kWarps * S::kResident;
  const int key = block_key + static_cast<int>(threadIdx.x) / 32 * S::kResident,
            key_end = min(key + S::kResident, layer.context);
  const int window = layer.sliding_window > 0 ? layer.sliding_window : layer.queries;
  const long long last_query = min(static_cast<long long>(layer.queries),
                                   static_cast<long long>(block_key) + kWarps * S::kResident - 1 + window);
  const int first = block_key / kTile, last = static_cast<int>((last_query + kTile - 1) / kTile);

  Resident<T, Size> keys;
  keys.load(
      static_cast<const T*>(layer.k) + (static_cast<size_t>(kv_head) * layer.tokens + min(key, layer.context)) * Size,
      key_end - key);
  const RowSoftmax* of_head = softmax + static_cast<size_t>(kv_head) * row_blocks * S::kResident;
  const T* queries = static_cast<const T*>(layer.q) + static_cast<size_t>(head) * layer.queries * Size;
  const LogitForm form(layer);
  float columns[S::kColumns][2] = {};
  stream_tiles<S>(queries, layer.queries, first, last, shared, [&](int tile, const uint4* chunks) {
#pragma unroll 1
    for (int step = 0; step < kTile; step += kStep) {
      const int first_query = tile * kTile + step;
      const bool all = first_query >= key_end - 1 && first_query + kStep - 1 < key + window;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float c[S::kColumns][4];
        products<T, Size>(c, chunks, step + 16 * i, keys);
        form.apply_cap(c);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int query = first_query + 16 * i + 8 * half + lane_row();
          const int row_block = query / S::kResident * layer.group + head % layer.group;
          const RowSoftmax of_row =
              query < layer.queries ? of_head[row_block * S::kResident + query % S::kResident] : RowSoftmax{0, 0};
#pragma unroll
          for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              float x = c[n][2 * half + e];
              if (!all && !sees(layer, query, key + 8 * n + 2 * lane_column() + e)) x = form.hidden();
              columns[n][e] += fast_exp2(__fmaf_rn(x, form.factor, -of_row.maximum)) * of_row.inverse_sum;
            }
          }
        }
      }
    }
  });

#pragma unroll
  for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum = columns[n][e];
#pragma unroll
      for (int other = 4; other < 32; other *= 2) sum += __shfl_xor_sync(~0U, sum, other);
      const int at = key + 8 * n + 2 * lane_column() + e;
      if (lane_row() == 0 && at < layer.context) sums[static_cast<size_t>(head) * layer.context + at] = sum;
    }
  }
}

void all_columns_sm80(const Layer& layer, const RowSoftmax* softmax, float* sums, cudaStream_t stream) {
  const RowLayout layout(layer, {0, layer.queries});
  for_element_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    using S = Streaming<T, Size>;
    allow_shared_memory(all_columns_kernel<T, Size>, S::kSharedBytes);
    constexpr int kKeys = kWarps * S::kResident;
    const dim3 grid(layer.query_heads, (layer.context + kKeys - 1) / kKeys);
    all_columns_kernel<T, Size><<<grid, kThreads, S::kSharedBytes, stream>>>(layer, layout.row_blocks, softmax, sums);
  });
  check_launch("column sums");
}

}  // namespace

void all_columns(const Layer& layer, const RowSoftmax* softmax, float* sums, cudaStream_t stream) {
  (use_sm90(layer) ? all_columns_sm90 : all_columns_sm80)(layer, softmax, sums, stream);
}

}  // namespace laprox::cuda
