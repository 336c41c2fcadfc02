#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/running_softmax.cuh"
#include "backends/cuda/stream.cuh"

namespace laprox::cuda {

namespace {

/// What a lane adds to the softmax of one query from its four keys of two accumulator tiles.
template <int Columns>
__device__ inline float exponentials(const float (&c)[2][Columns][4], int n, int e, float factor, float shift) {
  return (fast_exp2(__fmaf_rn(c[0][n][e], factor, -shift)) + fast_exp2(__fmaf_rn(c[0][n][e + 2], factor, -shift))) +
         (fast_exp2(__fmaf_rn(c[1][n][e], factor, -shift)) + fast_exp2(__fmaf_rn(c[1][n][e + 2], factor, -shift)));
}

/// Adds the products c to the running softmaxes of a lane's queries. Only where a shift proves to be too small is the
/// maximum sought: at the first keys, and hardly ever again.
template <int Columns>
__device__ inline void add(RunningSoftmax (&running)[Columns][2], const float (&c)[2][Columns][4], float factor) {
  float added[Columns][2], largest = 0;
#pragma unroll
  for (int n = 0; n < Columns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      added[n][e] = exponentials(c, n, e, factor, running[n][e].shift);
      largest = fmaxf(largest, added[n][e]);
    }
  }
  if (largest >= kTooLarge) {
#pragma unroll
    for (int n = 0; n < Columns; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float maximum = fmaxf(fmaxf(c[0][n][e] * factor, c[0][n][e + 2] * factor),
                                    fmaxf(c[1][n][e] * factor, c[1][n][e + 2] * factor));
        running[n][e].join(maximum, 0);
        added[n][e] = exponentials(c, n, e, factor, running[n][e].shift);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < Columns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) running[n][e].sum += added[n][e];
  }
}

/// One pass over the keys: block (split * kv_heads + kv_head, group of row blocks) keeps its warps' query rows and
/// streams its share of the keys that they see. partial: [splits, kv_heads, rows].
template <class T, int Size>
__global__ void __launch_bounds__(kThreads, Streaming<T, Size>::kResidentBlocks)
    row_softmax_kernel(Layer layer, QueryRange range, int row_blocks, int splits, float2* partial) {
  using S = Streaming<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const int kv_head = static_cast<int>(blockIdx.x) % layer.kv_heads,
            split = static_cast<int>(blockIdx.x) / layer.kv_heads;
  // Later queries see more keys: they begin first.
  const int first_block = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kWarps;
  const int row_block = first_block + static_cast<int>(threadIdx.x) / 32;
  const bool idle = row_block >= row_blocks;
  const RowBlock rows(layer, range, kv_head, idle ? first_block : row_block, S::kResident);
  // All warps of the block stream the keys that any of them needs.
  const RowBlock low(layer, range, kv_head, first_block, S::kResident);
  const RowBlock high(layer, range, kv_head, min(first_block + kWarps, row_blocks) - 1, S::kResident);
  const int begin = low.first_key / kTile, tiles = (high.last_key + kTile - 1) / kTile - begin;
  const int first = begin + static_cast<int>(static_cast<long long>(tiles) * split / splits);
  const int last = begin + static_cast<int>(static_cast<long long>(tiles) * (split + 1) / splits);

  const T* keys = static_cast<const T*>(layer.k) + static_cast<size_t>(kv_head) * layer.tokens * Size;
  Resident<T, Size> queries;
  queries.load(static_cast<const T*>(layer.q) + (static_cast<size_t>(rows.head) * layer.queries + rows.first) * Size,
               idle ? 0 : rows.count());

  const LogitForm form(layer);
  // Set one by one: nvcc 13.0 gives the initial value of a class to the first row of an array of arrays alone.
  RunningSoftmax running[S::kColumns][2];
#pragma unroll
  for (int n = 0; n < S::kColumns; ++n) running[n][0] = running[n][1] = {kNothing, 0};
  stream_tiles<S>(keys, layer.tokens, first, last, shared, [&](int tile, const uint4* chunks) {
    if (idle) return;
#pragma unroll 1
    for (int step = 0; step < kTile; step += kStep) {
      const int key = tile * kTile + step;
      float c[2][S::kColumns][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        products<T, Size>(c[i], chunks, step + 16 * i, queries);
        form.apply_cap(c[i]);
      }
      if (!rows.sees_all(layer, key, key + kStep)) {
#pragma unroll
        for (int i = 0; i < 2; ++i) hide_unseen(c[i], layer, rows, key + 16 * i, form);
      }
      add(running, c, form.factor);
    }
  });
  if (idle) return;

  float2* out =
      partial + ((static_cast<size_t>(split) * layer.kv_heads + kv_head) * row_blocks + row_block) * S::kResident;
#pragma unroll
  for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      RunningSoftmax& r = running[n][e];
#pragma unroll
      for (int other = 4; other < 32; other *= 2) {
        r.join(__shfl_xor_sync(~0U, r.shift, other), __shfl_xor_sync(~0U, r.sum, other));
      }
      if (lane_row() == 0) out[8 * n + 2 * lane_column() + e] = make_float2(r.shift, r.sum);
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
  softmax[row] = {running.shift, running.sum > 0 ? 1 / running.sum : 0};
}

int row_parts_sm80(const Layer& layer, QueryRange range, DeviceBuffer<float2>& partial, cudaStream_t stream) {
  const RowLayout layout(layer, range);
  const int groups = (layout.row_blocks + kWarps - 1) / kWarps;
  int splits = 0;
  for_element_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    using S = Streaming<T, Size>;
    splits = shares_of<S>((layer.tokens + kTile - 1) / kTile, layer.kv_heads * groups);
    partial.at_least(static_cast<size_t>(splits) * layer.kv_heads * layout.rows());
    allow_shared_memory(row_softmax_kernel<T, Size>, S::kSharedBytes);
    row_softmax_kernel<T, Size><<<dim3(splits * layer.kv_heads, groups), kThreads, S::kSharedBytes, stream>>>(
        layer, range, layout.row_blocks, splits, partial.data());
  });
  check_launch("row softmax");
  return splits;
}

}  // namespace

void row_softmax(const Layer& layer, QueryRange range, DeviceBuffer<float2>& partial, DeviceBuffer<RowSoftmax>& softmax,
                 cudaStream_t stream) {
  const RowLayout layout(layer, range);
  const int total = layer.kv_heads * layout.rows();
  softmax.at_least(total);
  const int parts = (use_sm90(layer) ? row_parts_sm90 : row_parts_sm80)(layer, range, partial, stream);
  finish_kernel<<<(total + 127) / 128, 128, 0, stream>>>(layer, range, layout.resident, layout.rows(), parts,
                                                         partial.data(), softmax.data());
  check_launch("finishing the row softmax");
}

RowLayout::RowLayout(const Layer& layer, QueryRange range) {
  for_element_and_size(layer.element, layer.head_stride,
                       [&]<class T, int Size>() { resident = Streaming<T, Size>::kResident; });
  row_blocks = (range.count + resident - 1) / resident * layer.group;
}

}  // namespace laprox::cuda
