#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/double_product.cuh"
#include "backends/cuda/rows.cuh"
#include "backends/cuda/stream.cuh"

namespace laprox::cuda {

namespace {

constexpr float kLn2 = 0.6931471805599453F;

/// Block (split, group of row blocks) keeps query rows and streams its share of all keys.
template <class T, int Size>
__global__ void __launch_bounds__(kThreads, Streaming<T, Size>::kResidentBlocks)
    logit_table_kernel(Layer layer, QueryRange range, int kv_head, int row_blocks, float* logits) {
  using S = Streaming<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
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
  stream_tiles<S>(keys, layer.tokens, first, last, shared, [&](int tile, const uint4* chunks) {
    if (idle) return;
#pragma unroll 1
    for (int step = 0; step < kTile; step += kStep) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float c[S::kColumns][4];
        products<T, Size>(c, chunks, step + 16 * i, queries);
        form.apply_cap(c);
        hide_unseen(c, layer, rows, tile * kTile + step + 16 * i, form);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int key = tile * kTile + step + 16 * i + 8 * half + lane_row();
          if (key >= layer.tokens) continue;
          float* row = logits + static_cast<size_t>(key) * stride + row_block * S::kResident + 2 * lane_column();
#pragma unroll
          for (int n = 0; n < S::kColumns; ++n) {
            const float2 pair =
                make_float2(c[n][2 * half] * form.factor * kLn2, c[n][2 * half + 1] * form.factor * kLn2);
            *reinterpret_cast<float2*>(row + 8 * n) = pair;
          }
        }
      }
    }
  });
}

/// The factors of exact logits: keys, and the query rows of one KV head.
template <class T>
struct Keys {
  const T* first;
  int stride;
  __device__ double operator()(int, int token, int k) const {
    return to_double(first[static_cast<size_t>(token) * stride + k]);
  }
};
struct TableRow {
  int head, query;  ///< query: of the range; past its end in rows of padding
};
struct TableRows {
  Layer layer;
  QueryRange range;
  int kv_head, resident;
  __device__ TableRow operator()(int row) const {
    const int row_block = row / resident;
    return {kv_head * layer.group + row_block % layer.group, row_block / layer.group * resident + row % resident};
  }
};
template <class T>
struct Queries {
  TableRows rows;
  __device__ double operator()(int, int k, int column) const {
    const TableRow row = rows(column);
    if (row.query >= rows.range.count) return 0;
    const size_t at = static_cast<size_t>(row.head) * rows.layer.queries + rows.range.first + row.query;
    return to_double(static_cast<const T*>(rows.layer.q)[at * rows.layer.head_stride + k]);
  }
};
/// Makes logits of products.
struct StoreLogits {
  TableRows rows;
  int stride;
  float* logits;
  __device__ void operator()(int, int token, int column, double product) const {
    const Layer& layer = rows.layer;
    const int query = rows.range.first + min(rows(column).query, rows.range.count - 1);
    double logit = layer.scale * product;
    if (layer.softcap > 0) logit = layer.softcap * tanh(logit / layer.softcap);
    logits[static_cast<size_t>(token) * stride + column] =
        sees(layer, layer.positions[query], token) ? static_cast<float>(logit) : -INFINITY;
  }
};

/// The table in float64, rounded once: tensor cores cut off sums in float32, which tells where logits are in the
/// thousands.
void exact_logit_table(const Layer& layer, QueryRange range, int kv_head, float* logits, cudaStream_t stream) {
  const RowLayout layout(layer, range);
  for_element(layer.element, [&]<class T>() {
    const TableRows rows{layer, range, kv_head, layout.resident};
    const T* keys = static_cast<const T*>(layer.k) + static_cast<size_t>(kv_head) * layer.tokens * layer.head_stride;
    double_product(1, layer.tokens, layout.rows(), layer.head_stride, Keys<T>{keys, layer.head_stride},
                   Queries<T>{rows}, StoreLogits{rows, layout.rows(), logits}, stream);
  });
}

constexpr int kRowsPerBlock = 32, kTokenThreads = 16;

/// Largest logit and 1 / sum of exp(logit - largest) of each row of a table, the head's sink included: here the maximum
/// is exact and exp accurate, because some scorers divide by 1 - weight. Block per 32 rows.
__global__ void __launch_bounds__(kRowsPerBlock* kTokenThreads)
    table_softmax_kernel(Layer layer, QueryRange range, int kv_head, int resident, int rows, const float* logits,
                         float2* softmax) {
  __shared__ float of_thread[kTokenThreads][kRowsPerBlock];
  const int x = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.x) * kRowsPerBlock + x;
  const bool real = row < rows;
  const int row_block = row / resident, query = row_block / layer.group * resident + row % resident;
  const float sink = layer.sinks && real ? layer.sinks[kv_head * layer.group + row_block % layer.group] : -INFINITY;
  float maximum = sink;
  for (int i = static_cast<int>(threadIdx.y); i < layer.tokens && real; i += kTokenThreads) {
    maximum = fmaxf(maximum, logits[static_cast<size_t>(i) * rows + row]);
  }
  of_thread[threadIdx.y][x] = maximum;
  __syncthreads();
  for (const auto& other : of_thread) maximum = fmaxf(maximum, other[x]);
  __syncthreads();
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.y); i < layer.tokens && real; i += kTokenThreads) {
    sum += expf(logits[static_cast<size_t>(i) * rows + row] - maximum);
  }
  of_thread[threadIdx.y][x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || !real) return;
  sum = expf(sink - maximum);
  for (const auto& other : of_thread) sum += other[x];
  softmax[row] = make_float2(maximum, query < range.count ? 1 / sum : 0);
}

__global__ void to_weights_kernel(const float2* softmax, int rows, size_t count, float* table) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const float2 of_row = softmax[i % rows];
    table[i] = expf(table[i] - of_row.x) * of_row.y;
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

void logit_table(const Layer& layer, QueryRange range, int kv_head, float* logits, cudaStream_t stream,
                 LogitSums sums) {
  if (sums == LogitSums::exact) return exact_logit_table(layer, range, kv_head, logits, stream);
  const RowLayout layout(layer, range);
  const int groups = (layout.row_blocks + kWarps - 1) / kWarps;
  for_element_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    using S = Streaming<T, Size>;
    const int splits = shares_of<S>((layer.tokens + kTile - 1) / kTile, groups);
    allow_shared_memory(logit_table_kernel<T, Size>, S::kSharedBytes);
    logit_table_kernel<T, Size>
        <<<dim3(splits, groups), kThreads, S::kSharedBytes, stream>>>(layer, range, kv_head, layout.row_blocks, logits);
  });
  check_launch("logits");
}

void to_weights(const Layer& layer, QueryRange range, int kv_head, float* table, DeviceBuffer<float2>& softmax,
                cudaStream_t stream) {
  const RowLayout layout(layer, range);
  const int rows = layout.rows();
  softmax.at_least(rows);
  table_softmax_kernel<<<(rows + kRowsPerBlock - 1) / kRowsPerBlock, dim3(kRowsPerBlock, kTokenThreads), 0, stream>>>(
      layer, range, kv_head, layout.resident, rows, table, softmax.data());
  check_launch("softmax of logits");
  to_weights_kernel<<<8 * device_limits().multiprocessors, 256, 0, stream>>>(
      softmax.data(), rows, static_cast<size_t>(layer.tokens) * rows, table);
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
