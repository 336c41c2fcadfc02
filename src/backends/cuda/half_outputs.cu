#include <algorithm>

#include "backends/cuda/half_outputs.cuh"
#include "backends/cuda/half_products.cuh"

namespace laprox::cuda {

namespace {

/// Tiles of keys, behind which the values of the same tokens stand in the tile.
template <class T, int Size>
struct KeyValueTiles : HalfRows<T, Size> {
  static constexpr int kTileBytes = 2 * HalfRows<T, Size>::kTileBytes;
  static constexpr int kStages = 2;
  static constexpr int kSharedBytes = kStages * kTileBytes;
  static constexpr int kResidentBlocks = Size <= 64 ? 3 : 2;
  static constexpr int kRowBlocks = kWarps / 2;  ///< per block
};

/// Logits of a warp's 16 queries with the 64 keys of a tile: c[j] has those of the keys 8 j + ..
template <class Shape, class T, int Size>
__device__ inline void tile_products(float (&c)[8][4], const LeftRows<T, Size>& queries, const uint4* keys) {
#pragma unroll
  for (auto& tile : c) tile[0] = tile[1] = tile[2] = tile[3] = 0;
  unsigned address[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) address[j] = right_address<Shape>(keys, 16 * j, 0);
#pragma unroll
  for (int s = 0; s < Size / 16; ++s) {
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const uint4 right = load_pieces(address[j / 2] ^ (32 * s));
      multiply_step<T>(c[j], queries.steps[s], right.x, right.y);
      multiply_step<T>(c[j + 1], queries.steps[s], right.z, right.w);
    }
  }
}

/// Adds the values of a tile, weighted, to a warp's outputs. Each tile's sum begins at 0: tensor cores cut sums off
/// instead of rounding them, and adding it to the rest is rounded.
template <class Shape, int Size>
__device__ inline void add_values(float (&outputs)[Size / 8][4], const TileWeights& weights, const uint4* values) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // As in right_address, but for rows of the depth: the first eight rows of both chunks, then the second eight.
  const unsigned address = shared_address(values + Shape::place(lane / 8 % 2 * 8 + lane % 8, lane / 16));
#pragma unroll
  for (int j = 0; j < Size / 8; j += 2) {
    float sums[2][4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint4 right = load_transposed_pieces((address ^ (16 * j)) + 16 * k * Shape::kRow * 16);
      multiply_step<__half>(sums[0], weights.low[k], right.x, right.y);
      multiply_step<__half>(sums[1], weights.low[k], right.z, right.w);
      multiply_step<__half>(sums[0], weights.high[k], right.x, right.y);
      multiply_step<__half>(sums[1], weights.high[k], right.z, right.w);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) outputs[j + n][e] += sums[n][e];
    }
  }
}

/// As flash attention forms outputs, from softmaxes that are known: block (split * kv_heads + kv_head, group of row
/// blocks) keeps its warps' query rows and streams its share of the keys and values that they see. The dominant entry
/// of a row is left out and noted. parts: [splits, kv_heads, rows, Size]; remainders: [splits, kv_heads, rows].
template <class T, int Size>
__global__ void __launch_bounds__(kThreads, KeyValueTiles<T, Size>::kResidentBlocks)
    rests_kernel(HalfTerms terms, int row_blocks, int splits, float* parts, float* remainders) {
  using S = KeyValueTiles<T, Size>;
  using V = HalfRows<__half, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const Layer& layer = terms.layer;
  const RestBlock<S> block(terms, row_blocks, splits);
  const T* keys = static_cast<const T*>(layer.k) + static_cast<size_t>(block.kv_head) * layer.tokens * Size;
  const __half* values = terms.values + static_cast<size_t>(block.kv_head) * layer.tokens * Size;
  LeftRows<T, Size> queries;
  queries.load_queries(
      static_cast<const T*>(layer.q) + (static_cast<size_t>(block.rows.head) * layer.queries + block.rows.first) * Size,
      block.idle ? 0 : block.rows.count());
  RestRows of_rows(terms, block.first_row, !block.idle);
  float outputs[Size / 8][4] = {};
  const LogitForm form(layer);
  stream_tiles<S>(
      keys, layer.tokens, block.first, block.last, shared,
      [&](int tile, const uint4* chunks) {
        if (block.idle) return;
        float c[8][4];
        tile_products<S>(c, queries, chunks);
        finish_products(c, layer, block.rows, tile * kTile, form);
        TileWeights weights;
#pragma unroll
        for (int half = 0; half < 2; ++half) of_rows.weigh(c, half, form.factor, tile * kTile);
        weights.take(c);
        add_values<V, Size>(outputs, weights, chunks + HalfRows<T, Size>::kTileBytes / 16);
      },
      [&](int tile, uint4* chunks) {
        start_tile<V>(chunks + HalfRows<T, Size>::kTileBytes / 16, values, layer.tokens, tile);
      });
  if (block.idle) return;

  const size_t row = static_cast<size_t>(block.split) * layer.kv_heads * terms.rows + block.first_row;
  of_rows.template store<Size>(outputs, terms.value_scales[block.kv_head] / kWeightScale, parts + row * Size,
                               remainders + row);
}

/// Thread per row and component: adds the splits' parts in order.
__global__ void sum_rests_kernel(const float* parts, int splits, size_t size, float* rests) {
  const size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= size) return;
  float sum = 0;
  for (int split = 0; split < splits; ++split) sum += parts[split * size + at];
  rests[at] = sum;
}

/// Thread per row: adds the splits' remainders in order, and the weight of the head's sink.
__global__ void sum_remainders_kernel(HalfTerms terms, const float* parts, int splits) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), total = terms.layer.kv_heads * terms.rows;
  if (row >= total) return;
  const RowSoftmax of_row = terms.softmax[row];
  float sum = 0;
  if (terms.layer.sinks) {
    const int head = row / terms.rows * terms.layer.group + row % terms.rows / kRowBlockRows % terms.layer.group;
    sum = fast_exp2(__fmaf_rn(terms.layer.sinks[head], kLog2E, -of_row.maximum)) * of_row.inverse_sum;
  }
  for (int split = 0; split < splits; ++split) sum += parts[static_cast<size_t>(split) * total + row];
  terms.remainders[row] = sum;
}

/// As rest_parts_sm90, for any device.
int rest_parts_sm80(const HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream) {
  return launch_rests<KeyValueTiles>(
      terms, scratch, [&]<class T, int Size>(dim3 grid, int row_blocks, int splits, float* parts, float* remainders) {
        using S = KeyValueTiles<T, Size>;
        allow_shared_memory(rests_kernel<T, Size>, S::kSharedBytes);
        rests_kernel<T, Size>
            <<<grid, S::kBlockThreads, S::kSharedBytes, stream>>>(terms, row_blocks, splits, parts, remainders);
      });
}

}  // namespace

void half_outputs(HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream) {
  const Layer& layer = terms.layer;
  const size_t rows = static_cast<size_t>(layer.kv_heads) * terms.rows, size = rows * layer.value_stride;
  terms.dominants = scratch.dominants.at_least(rows);
  terms.rests = scratch.rests.at_least(size);
  terms.remainders = scratch.remainders.at_least(rows);
  check(cudaMemsetAsync(terms.dominants, 0xff, rows * sizeof(Dominant), stream), "clearing device memory");
  const int splits = (use_sm90(layer) ? rest_parts_sm90 : rest_parts_sm80)(terms, scratch, stream);
  if (splits > 1) {
    sum_rests_kernel<<<static_cast<unsigned>((size + 255) / 256), 256, 0, stream>>>(scratch.parts.data(), splits, size,
                                                                                    terms.rests);
  }
  sum_remainders_kernel<<<static_cast<unsigned>((rows + 127) / 128), 128, 0, stream>>>(
      terms, scratch.remainder_parts.data(), splits);
  check_launch("finishing outputs");
}

}  // namespace laprox::cuda
