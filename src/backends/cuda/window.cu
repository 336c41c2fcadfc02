#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/rows.cuh"
#include "backends/cuda/stream.cuh"

namespace laprox::cuda {

namespace {

/// The sum over the four lanes that share a row of an accumulator tile.
__device__ inline float sum_over_columns(float x) {
  x += __shfl_xor_sync(~0U, x, 1);
  return x + __shfl_xor_sync(~0U, x, 2);
}

/// The second pass over the keys: block (split * kv_heads + kv_head, group of query heads) keeps the row blocks of
/// queries `query_block` of its heads and streams its share of the context's keys. A warp has all resident queries of
/// one head and whole rows of keys, so it sums a key's column alone. Query blocks but the first one add to what is
/// there.
template <class T, int Size>
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
  float* head_sums = sums ? sums + static_cast<size_t>(rows.head) * layer.context : nullptr;
  float* head_squares = squares + static_cast<size_t>(rows.head) * layer.context;
  stream_tiles<T, Size>(keys, layer.tokens, first, last, shared, [&](int tile, const uint4* chunks) {
    if (idle) return;
#pragma unroll 1
    for (int step = 0; step < kTile; step += kStep) {
      const int first_key = tile * kTile + step;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float c[S::kColumns][4];
        products<T, Size>(c, chunks, step + 16 * i, queries);
        form.apply_cap(c);
        if (!rows.sees_all(layer, first_key + 16 * i, first_key + 16 * i + 16)) {
          hide_unseen(c, layer, rows, first_key + 16 * i, form);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int key = first_key + 16 * i + 8 * half + lane_row();
          float sum = 0, square = 0;
#pragma unroll
          for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const float x = __fmaf_rn(c[n][2 * half + e], form.factor, -of_row[n][e].maximum);
              const float weight = fast_exp2(x) * of_row[n][e].inverse_sum;
              sum += weight;
              square += weight * weight;
            }
          }
          square = sum_over_columns(square);
          if (head_sums) sum = sum_over_columns(sum);
          if (lane_column() != 0 || key >= layer.context) continue;
          head_squares[key] = query_block > 0 ? head_squares[key] + square : square;
          if (head_sums) head_sums[key] = query_block > 0 ? head_sums[key] + sum : sum;
        }
      }
    }
  });
}

}  // namespace

void window_columns(const Layer& layer, QueryRange range, const RowSoftmax* softmax, float* sums, float* squares,
                    cudaStream_t stream) {
  const RowLayout layout(layer, range);
  const int groups = (layer.group + kWarps - 1) / kWarps;
  for_element_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    using S = Streaming<T, Size>;
    const int splits = shares_of<T, Size>((layer.context + kTile - 1) / kTile, layer.kv_heads * groups);
    allow_shared_memory(window_kernel<T, Size>, S::kSharedBytes);
    for (int query_block = 0; query_block < layout.row_blocks / layer.group; ++query_block) {
      window_kernel<T, Size><<<dim3(splits * layer.kv_heads, groups), kThreads, S::kSharedBytes, stream>>>(
          layer, range, layout.row_blocks, query_block, splits, softmax, sums, squares);
    }
  });
  check_launch("window columns");
}

}  // namespace laprox::cuda
