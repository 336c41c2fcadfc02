#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/rows.cuh"
#include "backends/cuda/stream.cuh"

namespace laprox::cuda {

namespace {

constexpr float kLn2 = 0.6931471805599453F;

/// Block (split, group of row blocks) keeps query rows and streams its share of all keys.
template <class T, int Size>
__global__ void __launch_bounds__(Streaming<T, Size>::kMaxThreads, Streaming<T, Size>::kResidentBlocks)
    logit_table_kernel(Layer layer, QueryRange range, int kv_head, int row_blocks, float* logits) {
  using S = Streaming<T, Size>;
  extern __shared__ uint4 shared[];
  const int row_block = static_cast<int>((blockIdx.y * blockDim.x + threadIdx.x) / 32);
  const bool idle = row_block >= row_blocks;
  const RowBlock rows(layer, range, kv_head, idle ? 0 : row_block, S::kResident);
  const long long tiles = (layer.tokens + kTile - 1) / kTile;
  const int first = static_cast<int>(tiles * blockIdx.x / gridDim.x);
  const int last = static_cast<int>(tiles * (blockIdx.x + 1) / gridDim.x);

  Resident<T, Size> queries;
  queries.load(static_cast<const T*>(layer.q) + (static_cast<size_t>(rows.head) * layer.queries + rows.first) * Size,
               idle ? 0 : rows.count());
  const LogitForm form(layer);
  const T* keys = static_cast<const T*>(layer.k) + static_cast<size_t>(kv_head) * layer.tokens * Size;
  const int stride = row_blocks * S::kResident;
  stream_tiles<T, Size>(keys, layer.tokens, first, last, shared, [&](int tile, const uint4* chunks) {
    if (idle) return;
#pragma unroll 1
    for (int step = 0; step < kTile; step += kStep) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float c[S::kColumns][4];
        products<T, Size>(c, chunks, step + 16 * i, queries);
        form.apply_cap(c);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int key = tile * kTile + step + 16 * i + 8 * half + lane_row();
          if (key >= layer.tokens) continue;
#pragma unroll
          for (int n = 0; n < S::kColumns; ++n) {
            float x[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const bool visible = sees(layer, rows.position(layer, 8 * n + 2 * lane_column() + e), key);
              x[e] = visible ? c[n][2 * half + e] * form.factor * kLn2 : -INFINITY;
            }
            float* out =
                logits + static_cast<size_t>(key) * stride + row_block * S::kResident + 8 * n + 2 * lane_column();
            *reinterpret_cast<float2*>(out) = make_float2(x[0], x[1]);
          }
        }
      }
    }
  });
}

__global__ void to_weights_kernel(const RowSoftmax* softmax, int rows, size_t count, float* table) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const RowSoftmax of_row = softmax[i % rows];
    table[i] = exp2f(table[i] * kLog2E - of_row.maximum) * of_row.inverse_sum;
  }
}

/// One warp per token and pair of heads.
__global__ void weight_products_kernel(const float* weights, int group, int resident, int query_blocks, int context,
                                       float* products) {
  const int token = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y), a = static_cast<int>(blockIdx.y) / group,
            b = static_cast<int>(blockIdx.y) % group;
  if (token >= context) return;
  const float* row = weights + static_cast<size_t>(token) * query_blocks * group * resident;
  float sum = 0;
  for (int query = static_cast<int>(threadIdx.x); query < query_blocks * resident; query += 32) {
    const float* block = row + query / resident * group * resident + query % resident;
    sum += block[a * resident] * block[b * resident];
  }
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(~0U, sum, other);
  if (threadIdx.x == 0) products[static_cast<size_t>(blockIdx.y) * context + token] = sum;
}

}  // namespace

void logit_table(const Layer& layer, QueryRange range, int kv_head, float* logits, cudaStream_t stream) {
  const RowLayout layout(layer, range);
  const int warps = std::min(layout.row_blocks, kMaxWarps), groups = (layout.row_blocks + warps - 1) / warps;
  for_element_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    using S = Streaming<T, Size>;
    const int splits = shares_of<T, Size>((layer.tokens + kTile - 1) / kTile, groups);
    allow_shared_memory(logit_table_kernel<T, Size>, S::kSharedBytes);
    logit_table_kernel<T, Size><<<dim3(splits, groups), 32 * warps, S::kSharedBytes, stream>>>(
        layer, range, kv_head, layout.row_blocks, logits);
  });
  check_launch("logits");
}

void to_weights(const Layer& layer, QueryRange range, const RowSoftmax* softmax, float* table, cudaStream_t stream) {
  const int rows = RowLayout(layer, range).rows();
  to_weights_kernel<<<8 * device_limits().multiprocessors, 256, 0, stream>>>(
      softmax, rows, static_cast<size_t>(layer.tokens) * rows, table);
  check_launch("attention weights");
}

void weight_products(const Layer& layer, QueryRange range, const float* weights, float* products, cudaStream_t stream) {
  const RowLayout layout(layer, range);
  const dim3 grid((layer.context + 7) / 8, layer.group * layer.group);
  weight_products_kernel<<<grid, dim3(32, 8), 0, stream>>>(weights, layer.group, layout.resident,
                                                           layout.row_blocks / layer.group, layer.context, products);
  check_launch("products of weights");
}

}  // namespace laprox::cuda
