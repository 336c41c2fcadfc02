#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/rows.cuh"
#include "backends/cuda/stream.cuh"

namespace laprox::cuda {

namespace {

/// Running maximum and sum of exp2(x - maximum).
struct RunningSoftmax {
  float maximum = -INFINITY, sum = 0;

  __device__ void join(float other_maximum, float other_sum) {
    const float largest = fmaxf(maximum, other_maximum);
    // Nothing seen so far: subtracting 0 instead of -infinity leaves the sums 0.
    const float shift = largest == -INFINITY ? 0 : largest;
    sum = sum * exp2f(maximum - shift) + other_sum * exp2f(other_maximum - shift);
    maximum = largest;
  }
};

/// One pass over the keys: block (split * kv_heads + kv_head, group of row blocks) keeps its warps' query rows and
/// streams its share of the keys that they see. partial: [splits * kStreamWarps, kv_heads, rows].
template <class T, int Size>
__global__ void __launch_bounds__(Streaming<T, Size>::kThreads)
    row_softmax_kernel(Layer layer, QueryRange range, int row_blocks, int splits, float2* partial) {
  using S = Streaming<T, Size>;
  extern __shared__ uint4 shared[];
  const int kv_head = static_cast<int>(blockIdx.x) % layer.kv_heads,
            split = static_cast<int>(blockIdx.x) / layer.kv_heads;
  const int warp = static_cast<int>(threadIdx.x) / 32, row_warps = static_cast<int>(blockDim.x) / 32 / kStreamWarps;
  const int stream_warp = warp / row_warps;
  // Later queries see more keys: they begin first.
  const int first_block = static_cast<int>(gridDim.y - 1 - blockIdx.y) * row_warps;
  const int row_block = first_block + warp % row_warps;
  const bool idle = row_block >= row_blocks;
  const RowBlock rows(layer, range, kv_head, idle ? first_block : row_block, S::kResident);
  // All warps of the block stream the keys that any of them needs.
  const RowBlock low(layer, range, kv_head, first_block, S::kResident);
  const RowBlock high(layer, range, kv_head, min(first_block + row_warps, row_blocks) - 1, S::kResident);
  const int begin = low.first_key / kTile, tiles = (high.last_key + kTile - 1) / kTile - begin;
  const int first = begin + static_cast<int>(static_cast<long long>(tiles) * split / splits);
  const int last = begin + static_cast<int>(static_cast<long long>(tiles) * (split + 1) / splits);

  const T* keys = static_cast<const T*>(layer.k) + static_cast<size_t>(kv_head) * layer.tokens * Size;
  Resident<T, Size> queries;
  queries.load(static_cast<const T*>(layer.q) + (static_cast<size_t>(rows.head) * layer.queries + rows.first) * Size,
               idle ? 0 : rows.count());

  const LogitForm to_logit(layer);
  RunningSoftmax running[S::kColumns][2];
  stream_tiles<T, Size>(keys, layer.tokens, first, last, shared, [&](int tile, const uint4* chunks) {
    if (idle) return;
    float c[2][S::kColumns][4];
    const int key = tile * kTile + stream_warp * kWarpRows;
#pragma unroll
    for (int i = 0; i < 2; ++i) products<T, Size>(c[i], chunks, stream_warp * kWarpRows + 16 * i, queries);
    const bool all = rows.sees_all(layer, key, key + kWarpRows);
#pragma unroll
    for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float x[4] = {to_logit(c[0][n][e]), to_logit(c[0][n][e + 2]), to_logit(c[1][n][e]), to_logit(c[1][n][e + 2])};
        if (!all) {
          const int position = layer.positions[min(rows.first + 8 * n + 2 * lane_column() + e, rows.last - 1)];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (!sees(layer, position, key + 8 * i + lane_row())) x[i] = -INFINITY;
          }
        }
        RunningSoftmax& r = running[n][e];
        const float largest = fmaxf(r.maximum, fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])));
        const float shift = largest == -INFINITY ? 0 : largest;
        r.sum = r.sum * exp2f(r.maximum - shift) + (exp2f(x[0] - shift) + exp2f(x[1] - shift)) +
                (exp2f(x[2] - shift) + exp2f(x[3] - shift));
        r.maximum = largest;
      }
    }
  });
  if (idle) return;

  float2* out = partial +
                ((static_cast<size_t>(split) * kStreamWarps + stream_warp) * layer.kv_heads + kv_head) * row_blocks *
                    S::kResident +
                static_cast<size_t>(row_block) * S::kResident;
#pragma unroll
  for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      RunningSoftmax& r = running[n][e];
#pragma unroll
      for (int other = 4; other < 32; other *= 2) {
        r.join(__shfl_xor_sync(~0U, r.maximum, other), __shfl_xor_sync(~0U, r.sum, other));
      }
      if (lane_row() == 0) out[8 * n + 2 * lane_column() + e] = make_float2(r.maximum, r.sum);
    }
  }
}

/// One thread per row: joins the partial sums in order, and the sink.
__global__ void finish_kernel(Layer layer, QueryRange range, int resident, int rows, int parts, const float2* partial,
                              RowSoftmax* softmax) {
  const int total = layer.kv_heads * rows, row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= total) return;
  const int row_block = row % rows / resident, head = row / rows * layer.group + row_block % layer.group;
  const int query = row_block / layer.group * resident + row % resident;
  if (query >= range.count) {
    softmax[row] = {0, 0};
    return;
  }
  RunningSoftmax running;
  if (layer.sinks) running = {layer.sinks[head] * kLog2E, 1};
  for (int part = 0; part < parts; ++part) {
    const float2 of_part = partial[static_cast<size_t>(part) * total + row];
    running.join(of_part.x, of_part.y);
  }
  softmax[row] = {running.maximum, running.sum > 0 ? 1 / running.sum : 0};
}

}  // namespace

void row_softmax(const Layer& layer, QueryRange range, DeviceBuffer<float2>& partial, DeviceBuffer<RowSoftmax>& softmax,
                 cudaStream_t stream) {
  const RowLayout layout(layer, range);
  const int row_warps = layout.row_blocks < kRowWarps ? layout.row_blocks : kRowWarps;
  const int groups = (layout.row_blocks + row_warps - 1) / row_warps;
  const int tiles = (layer.tokens + kTile - 1) / kTile;
  const int blocks = 2 * device_limits().multiprocessors / (layer.kv_heads * groups);
  const int splits = blocks < 1 ? 1 : blocks < tiles ? blocks : tiles;
  const int rows = layout.rows(), total = layer.kv_heads * rows, parts = splits * kStreamWarps;
  partial.at_least(static_cast<size_t>(parts) * total);
  softmax.at_least(total);
  for_element_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    using S = Streaming<T, Size>;
    allow_shared_memory(row_softmax_kernel<T, Size>, S::kSharedBytes);
    const dim3 grid(splits * layer.kv_heads, groups);
    row_softmax_kernel<T, Size><<<grid, 32 * kStreamWarps * row_warps, S::kSharedBytes, stream>>>(
        layer, range, layout.row_blocks, splits, partial.data());
  });
  check_launch("row softmax");
  finish_kernel<<<(total + 127) / 128, 128, 0, stream>>>(layer, range, layout.resident, rows, parts, partial.data(),
                                                         softmax.data());
  check_launch("finishing the row softmax");
}

RowLayout::RowLayout(const Layer& layer, QueryRange range) {
  for_element_and_size(layer.element, layer.head_stride,
                       [&]<class T, int Size>() { resident = Streaming<T, Size>::kResident; });
  row_blocks = (range.count + resident - 1) / resident * layer.group;
}

}  // namespace laprox::cuda
