#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/ring_sm90.cuh"
#include "backends/cuda/running_softmax.cuh"

namespace laprox::cuda {

namespace {

/// Shape of a ring of keys; a block has as many row blocks as its warpgroups hold, two each.
template <class T, int Size, int Groups>
struct RowTiles : HalfTiles<T, Size> {
  static constexpr int kGroups = Groups, kRowBlocks = 2 * Groups;
  static constexpr int kResidentBlocks = 1;
  static constexpr int kStages = 12 * 128 / Size;
  static constexpr int kSharedBytes = kStages * RowTiles::kTileBytes;
};
/// Warpgroups of a block where rows are many, as registers allow, and where they are few: the window's.
template <int Size>
constexpr int kManyGroups = Size <= 128 ? 4 : 2;
constexpr int kFewGroups = 2;

/// What a lane adds to the softmax of one of its two queries.
__device__ inline float exponentials(const float (&c)[8][4], int half, float factor, float shift) {
  float even = 0, odd = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    even += fast_exp2(__fmaf_rn(c[j][2 * half], factor, -shift));
    odd += fast_exp2(__fmaf_rn(c[j][2 * half + 1], factor, -shift));
  }
  return even + odd;
}

/// Adds a tile's products to the running softmaxes. Only where a shift proves to be too small is the maximum sought: at
/// the first keys, and hardly ever again.
__device__ inline void add(RunningSoftmax (&running)[2], const float (&c)[8][4], float factor) {
  float added[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) added[half] = exponentials(c, half, factor, running[half].shift);
  if (fmaxf(added[0], added[1]) >= kTooLarge) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = kNothing;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        maximum = fmaxf(maximum, fmaxf(c[j][2 * half] * factor, c[j][2 * half + 1] * factor));
      }
      running[half].join(maximum, 0);
      added[half] = exponentials(c, half, factor, running[half].shift);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) running[half].sum += added[half];
}

/// One pass over the keys, as in row_softmax.cu: block (split * kv_heads + kv_head, group of row blocks).
template <class T, int Size, int Groups>
__global__ void __launch_bounds__(Ring<RowTiles<T, Size, Groups>>::kThreads, 1)
    row_softmax_kernel(Layer layer, const __grid_constant__ CUtensorMap keys, QueryRange range, int row_blocks,
                       int splits, float2* partial) {
  using S = RowTiles<T, Size, Groups>;
  extern __shared__ __align__(1024) uint4 shared[];
  __shared__ typename Ring<S>::Signals signals;
  const int kv_head = static_cast<int>(blockIdx.x) % layer.kv_heads,
            split = static_cast<int>(blockIdx.x) / layer.kv_heads;
  // Later queries see more keys: they begin first.
  const int first_block = static_cast<int>(gridDim.y - 1 - blockIdx.y) * S::kRowBlocks;
  // All warps of the block stream the keys that any of them needs.
  const RowBlock low(layer, range, kv_head, first_block, kRowBlockRows);
  const RowBlock high(layer, range, kv_head, min(first_block + S::kRowBlocks, row_blocks) - 1, kRowBlockRows);
  const int begin = low.first_key / kTile, tiles = (high.last_key + kTile - 1) / kTile - begin;
  const int first = begin + static_cast<int>(static_cast<long long>(tiles) * split / splits);
  const int last = begin + static_cast<int>(static_cast<long long>(tiles) * (split + 1) / splits);
  const Ring<S> ring(shared, signals, first, last);
  if (ring.fills()) {
    ring.fill([&](int tile, uint4* chunks, Arrival& arrival) {
      arrival.expect(S::kTileBytes);
      start_panels<Size>(chunks, keys, tile * kTile, kv_head, arrival);
    });
    return;
  }
  ring.begin_reading();

  const int warp = static_cast<int>(threadIdx.x) / 32, row_block = first_block + warp / 2;
  const bool idle = row_block >= row_blocks;
  const RowBlock rows(layer, range, kv_head, idle ? first_block : row_block, kRowBlockRows);
  LeftRows<T, Size> queries;
  queries.load_queries(
      static_cast<const T*>(layer.q) + (static_cast<size_t>(rows.head) * layer.queries + rows.first) * Size,
      idle ? 0 : rows.count());
  const LogitForm form(layer);
  RunningSoftmax running[2];
  ring.read([&](int tile, const uint4* chunks) {
    float c[8][4];
    start_products<S>(c, queries, chunks);
    wait_wgmma(c);
    finish_products(c, layer, rows, tile * kTile, form);
    add(running, c, form.factor);
  });
  if (idle) return;

  float2* out =
      partial + ((static_cast<size_t>(split) * layer.kv_heads + kv_head) * row_blocks + row_block) * kRowBlockRows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    RunningSoftmax& r = running[half];
#pragma unroll
    for (int other = 1; other < 4; other *= 2) {
      r.join(__shfl_xor_sync(~0U, r.shift, other), __shfl_xor_sync(~0U, r.sum, other));
    }
    if (lane_column() == 0) out[first_warp_row() + 8 * half + lane_row()] = make_float2(r.shift, r.sum);
  }
}

}  // namespace

int row_parts_sm90(const Layer& layer, QueryRange range, DeviceBuffer<float2>& partial, cudaStream_t stream) {
  const RowLayout layout(layer, range);
  int splits = 0;
  for_half_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    const auto launch = [&]<int Groups>() {
      using S = RowTiles<T, Size, Groups>;
      const int groups = (layout.row_blocks + S::kRowBlocks - 1) / S::kRowBlocks;
      splits = shares_of<S>((layer.tokens + kTile - 1) / kTile, layer.kv_heads * groups);
      partial.at_least(static_cast<size_t>(splits) * layer.kv_heads * layout.rows());
      const auto kernel = row_softmax_kernel<T, Size, Groups>;
      allow_shared_memory(kernel, S::kSharedBytes);
      kernel<<<dim3(splits * layer.kv_heads, groups), Ring<S>::kThreads, S::kSharedBytes, stream>>>(
          layer, tile_map(layer.k, Size, layer.tokens, layer.kv_heads), range, layout.row_blocks, splits,
          partial.data());
    };
    const bool few = layout.row_blocks < 8 * kManyGroups<Size>;
    few ? launch.template operator()<kFewGroups>() : launch.template operator()<kManyGroups<Size>>();
  });
  check_launch("row softmax");
  return splits;
}

}  // namespace laprox::cuda
