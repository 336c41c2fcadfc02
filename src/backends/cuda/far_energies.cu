#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/far_energies.cuh"

namespace laprox::cuda {

namespace {

constexpr int kKeyTiles = 2, kWarpKeys = 16 * kKeyTiles;  ///< keys of a warp
constexpr int kBlockKeys = kWarps * kWarpKeys;

template <class T, int Size>
struct FarTiles : FarShape<HalfRows<T, Size>, HalfRows<__half, 2 * Size>> {
  static constexpr int kResidentBlocks = 2;
};

/// As in column_sums.cu: block (head, group of keys) keeps keys, and their values, and streams the queries that are far
/// behind them, so that a lane sums its keys' energies over all queries. by_head: [query_heads, C].
template <class T, int Size>
__global__ void __launch_bounds__(kThreads, FarTiles<T, Size>::kResidentBlocks)
    far_energies_kernel(HalfTerms terms, int distance, double* by_head) {
  using S = FarTiles<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const Layer& layer = terms.layer;
  const int head = static_cast<int>(blockIdx.x), kv_head = head / layer.group;
  // Earlier keys are seen by more queries: they begin first.
  const int block_key = static_cast<int>(blockIdx.y) * kBlockKeys;
  const int key = block_key + static_cast<int>(threadIdx.x) / 32 * kWarpKeys, count = layer.context - key;
  const FarQueries queries(terms, distance);
  const FarTileRange tiles(queries, block_key, kBlockKeys, kTile);

  LeftRows<T, Size> keys[kKeyTiles];
  LeftRows<__half, Size> values[kKeyTiles];
  float forms[kKeyTiles][2];
  const size_t first_row = static_cast<size_t>(kv_head) * layer.tokens + min(key, layer.context);
#pragma unroll
  for (int i = 0; i < kKeyTiles; ++i) {
    const int rest = max(count - 16 * i, 0), at = rest > 0 ? 16 * i : 0;
    keys[i].load(static_cast<const T*>(layer.k) + (first_row + at) * Size, rest);
    values[i].load(terms.values + (first_row + at) * Size, rest);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int of_key = min(key + 16 * i + 8 * half + lane_row(), layer.context - 1);
      forms[i][half] = terms.forms[static_cast<size_t>(head) * layer.context + of_key];
    }
  }
  const size_t of_head = static_cast<size_t>(head) * terms.padded;
  const LogitForm form(layer);
  double sums[kKeyTiles][2] = {};

  const auto add = [&](int tile, const uint4* chunks, int step, float(&of_tile)[kKeyTiles][2]) {
    float c[kKeyTiles][2][4] = {}, linear[kKeyTiles][2][4] = {};
    const unsigned query = right_address<HalfRows<T, Size>>(chunks, step, 0);
    const unsigned high = right_address<typename S::Moments>(chunks + S::kMomentChunks, step, 0);
    const unsigned low = right_address<typename S::Moments>(chunks + S::kMomentChunks, step, S::kRow);
    // All products side by side, so that neighbouring ones are independent of each other.
#pragma unroll
    for (int s = 0; s < Size / 16; ++s) {
      multiply_rows<__half>(linear, values, low, s);
      multiply_rows<T>(c, keys, query, s);
      multiply_rows<__half>(linear, values, high, s);
    }
#pragma unroll
    for (auto& row : c) form.apply_cap(row);
    const int first_query = tile * kTile + step;
    const bool all = queries.all_count(first_query, 16, key, kWarpKeys);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int place = step + 8 * n + 2 * lane_column();
      const RowTerms* of_rows = reinterpret_cast<const RowTerms*>(chunks + S::kRowChunks) + place;
      const PairTerms* of_pairs = reinterpret_cast<const PairTerms*>(chunks + S::kPairChunks) + place;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const RowTerms row = of_rows[e];
        const PairTerms pair = of_pairs[e];
        const int query = first_query + 8 * n + 2 * lane_column() + e;
#pragma unroll
        for (int i = 0; i < kKeyTiles; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int at = key + 16 * i + 8 * half + lane_row();
            const float weight = far_weight(c[i][n][2 * half + e], form.factor, row);
            float energy = far_energy(weight, linear[i][n][2 * half + e], pair.scale, forms[i][half], pair.square);
            if (at == row.token) energy = row.energy;
            if (!all && !queries.counts(layer, query, at)) energy = 0;
            of_tile[i][half] += energy;
          }
        }
      }
    }
  };
  stream_tiles<S>(
      queries.rows<T, Size>(terms, head), queries.count, tiles.first, tiles.last, shared,
      [&](int tile, const uint4* chunks) {
        if (count <= 0) return;
        float of_tile[kKeyTiles][2] = {};  // short chains of sums keep their digits
#pragma unroll 1
        for (int step = 0; step < kTile; step += 16) add(tile, chunks, step, of_tile);
#pragma unroll
        for (int i = 0; i < kKeyTiles; ++i) {
          sums[i][0] += of_tile[i][0];
          sums[i][1] += of_tile[i][1];
        }
      },
      [&](int tile, uint4* chunks) { start_far_terms<S, Size>(chunks, terms, of_head, tile); });
#pragma unroll
  for (int i = 0; i < kKeyTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      double sum = sums[i][half];
      sum += __shfl_xor_sync(~0U, sum, 1);
      sum += __shfl_xor_sync(~0U, sum, 2);
      const int at = 16 * i + 8 * half + lane_row();
      if (lane_column() == 0 && at < count) by_head[static_cast<size_t>(head) * layer.context + key + at] = sum;
    }
  }
}

/// Thread per token, block row per KV head: adds the group's heads in order.
__global__ void sum_heads_kernel(const double* by_head, int group, int context, double* energies) {
  const int token = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), kv_head = static_cast<int>(blockIdx.y);
  if (token >= context) return;
  double sum = 0;
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    sum += by_head[static_cast<size_t>(head) * context + token];
  }
  energies[static_cast<size_t>(kv_head) * context + token] = sum;
}

void far_head_energies_sm80(const HalfTerms& terms, int distance, double* by_head, cudaStream_t stream) {
  const Layer& layer = terms.layer;
  for_half_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    if constexpr (Size <= kMostHalfSize) {
      using S = FarTiles<T, Size>;
      allow_shared_memory(far_energies_kernel<T, Size>, S::kSharedBytes);
      const dim3 grid(layer.query_heads, (layer.context + kBlockKeys - 1) / kBlockKeys);
      far_energies_kernel<T, Size><<<grid, kThreads, S::kSharedBytes, stream>>>(terms, distance, by_head);
    }
  });
  check_launch("energies of removal at distant queries");
}

}  // namespace

void far_head_energies(const HalfTerms& terms, int distance, double* by_head, double* energies, cudaStream_t stream) {
  const Layer& layer = terms.layer;
  (use_sm90(layer) ? far_head_energies_sm90 : far_head_energies_sm80)(terms, distance, by_head, stream);
  const dim3 grid((layer.context + 255) / 256, layer.kv_heads);
  sum_heads_kernel<<<grid, 256, 0, stream>>>(by_head, layer.group, layer.context, energies);
  check_launch("energies of all heads");
}

}  // namespace laprox::cuda
