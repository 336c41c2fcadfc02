#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/far_energies.cuh"
#include "backends/cuda/ring_sm90.cuh"

namespace laprox::cuda {

namespace {

constexpr int kGroupKeys = 64;  ///< of a warpgroup, 16 per warp
constexpr int kKeyGroups = 3;   ///< warpgroups per block: what registers allow
constexpr int kBlockKeys = kKeyGroups * kGroupKeys;
constexpr int kQueries = kTile;  ///< streamed at a time

/// Shape of a ring of queries, behind which their moments and terms stand in the tile.
template <class T, int Size>
struct FarTiles : FarShape<HalfTiles<T, Size>, HalfTiles<__half, 2 * Size>> {
  /// Panels of the next tile are exchanged within 1024 bytes.
  static constexpr int kTileBytes = (FarTiles::FarShape::kTileBytes + 1023) / 1024 * 1024;
  static constexpr int kGroups = kKeyGroups;
  static constexpr int kStages = 4 * 128 / Size;
  static constexpr int kSharedBytes = kStages * kTileBytes;
};

/// Starts a warpgroup's products with the queries of a tile: its keys with the queries, and in a group of their own its
/// values with the moments.
template <class S, class T, int Size>
__device__ inline void start_all(float (&c)[8][4], float (&linear)[8][4], const LeftRows<T, Size>& keys,
                                 const LeftRows<__half, Size>& values, const uint4* tile) {
  start_products<S>(c, keys, tile);
  const RightFactor moments = RightFactor::panels(tile + S::kMomentChunks);
  constexpr int kLow = Size / 64 * S::Moments::kPanelChunks;
#pragma unroll
  for (int s = 0; s < Size / 16; ++s) {
    const int at = s / 4 * S::Moments::kPanelChunks + s % 4 * 2;
    wgmma<__half>(linear, values.steps[s], moments + (at + kLow), s > 0);
    wgmma<__half>(linear, values.steps[s], moments + at, true);
  }
  commit_wgmma();
}

/// The products c of a lane's two keys with 64 queries become weights. Returns the largest one.
__device__ inline float to_weights(float (&c)[8][4], float factor, const RowTerms* of_rows) {
  float largest = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      c[j][e] = far_weight(c[j][e], factor, of_rows[8 * j + 2 * lane_column() + e % 2]);
      largest = fmaxf(largest, c[j][e]);
    }
  }
  return largest;
}

/// Calls visit(j, e, place, pair) for those of 64 queries that a lane has: `place`, whose weights are c[j][2 half + e].
template <class Visit>
__device__ inline void visit_queries(const PairTerms* of_pairs, const Visit& visit) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float4 pairs = reinterpret_cast<const float4*>(of_pairs)[4 * j + lane_column()];
    visit(j, 0, 8 * j + 2 * lane_column(), PairTerms{pairs.x, pairs.y});
    visit(j, 1, 8 * j + 2 * lane_column() + 1, PairTerms{pairs.z, pairs.w});
  }
}

/// Up to this weight, small_energies holds.
constexpr float kSmall = 0x1p-3F;

/// The energies of a lane's two keys at 64 queries, summed, where no weight a is above kSmall: 1 / (1 - a)^2 is the
/// polynomial that is closest there, within 5e-7 of it.
__device__ inline void small_energies(const float (&weights)[8][4], const float (&linear)[8][4],
                                      const float (&forms)[2], const PairTerms* of_pairs, float (&sums)[2]) {
  visit_queries(of_pairs, [&](int j, int e, int, const PairTerms& pair) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float a = weights[j][2 * half + e];
      float series = __fmaf_rn(7.40557177F, a, 3.71823093F);
      series = __fmaf_rn(series, a, 3.01288655F);
      series = __fmaf_rn(series, a, 1.99979826F);
      series = __fmaf_rn(series, a, 1.0000005F);
      const float form = fmaxf(__fmaf_rn(-pair.scale, linear[j][2 * half + e], forms[half] + pair.square), 0);
      sums[half] = __fmaf_rn(a * a * series, form, sums[half]);
    }
  });
}

/// The same for all weights, of the places for which counts(half, place) is true. key: the lane's first one.
template <class Counts>
__device__ inline void any_energies(const float (&weights)[8][4], const float (&linear)[8][4], const float (&forms)[2],
                                    const RowTerms* of_rows, const PairTerms* of_pairs, int key, float (&sums)[2],
                                    const Counts& counts) {
  visit_queries(of_pairs, [&](int j, int e, int place, const PairTerms& pair) {
    const RowTerms row = of_rows[place];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float energy =
          far_energy(weights[j][2 * half + e], linear[j][2 * half + e], pair.scale, forms[half], pair.square);
      if (key + 8 * half == row.token) energy = row.energy;
      sums[half] += counts(half, place) ? energy : 0;
    }
  });
}

/// As in far_energies.cu: block (head, group of keys) keeps keys and values and streams the queries that are far behind
/// them. A lane has the keys g and g + 8 of its warp's 16.
template <class T, int Size>
__global__ void __launch_bounds__(Ring<FarTiles<T, Size>>::kThreads, 1)
    far_energies_kernel(HalfTerms terms, const __grid_constant__ CUtensorMap of_queries,
                        const __grid_constant__ CUtensorMap of_moments, int distance, double* by_head) {
  using S = FarTiles<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const Layer& layer = terms.layer;
  __shared__ typename Ring<S>::Signals signals;
  const int head = static_cast<int>(blockIdx.y), kv_head = head / layer.group;
  // Earlier keys are seen by more queries: they begin first.
  const int block_key = static_cast<int>(blockIdx.x) * kBlockKeys;
  const FarQueries queries(terms, distance);
  const FarTileRange tiles(queries, block_key, kBlockKeys, kQueries);
  const size_t of_head = static_cast<size_t>(head) * terms.padded;
  const Ring<S> ring(shared, signals, tiles.first, tiles.last);
  if (ring.fills()) {
    ring.fill([&](int tile, uint4* chunks, Arrival& arrival) {
      const int row = tile * kQueries, terms_of_tile = min(kQueries, terms.padded - row);
      const int row_bytes = terms_of_tile * static_cast<int>(sizeof(RowTerms)),
                pair_bytes = terms_of_tile * static_cast<int>(sizeof(PairTerms));
      arrival.expect(16 * S::kRowChunks + row_bytes + pair_bytes);
      start_panels<Size>(chunks, of_queries, terms.range.first + row, head, arrival);
      start_panels<2 * Size>(chunks + S::kMomentChunks, of_moments, row, head, arrival);
      arrival.start_copy(chunks + S::kRowChunks, terms.row_terms + of_head + row, row_bytes);
      arrival.start_copy(chunks + S::kPairChunks, terms.pair_terms + of_head + row, pair_bytes);
    });
    return;
  }
  ring.begin_reading();

  const int warp = static_cast<int>(threadIdx.x) / 32, group_key = block_key + warp / 4 * kGroupKeys;
  const int warp_key = group_key + warp % 4 * 16, key = warp_key + lane_row();
  LeftRows<T, Size> keys;
  LeftRows<__half, Size> values;
  const size_t first_row = static_cast<size_t>(kv_head) * layer.tokens + min(warp_key, layer.context);
  keys.load(static_cast<const T*>(layer.k) + first_row * Size, layer.context - warp_key);
  values.load(terms.values + first_row * Size, layer.context - warp_key);
  float forms[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    forms[half] = terms.forms[static_cast<size_t>(head) * layer.context + min(key + 8 * half, layer.context - 1)];
  }
  const LogitForm form(layer);
  // Short chains of sums keep their digits: those of a tile, of some tiles, of all of them.
  constexpr int kSomeTiles = 8;
  float of_some[2] = {};
  double sums[2] = {};
  ring.read([&](int tile, const uint4* chunks) {
    const RowTerms* of_rows = reinterpret_cast<const RowTerms*>(chunks + S::kRowChunks);
    const PairTerms* of_pairs = reinterpret_cast<const PairTerms*>(chunks + S::kPairChunks);
    float c[8][4], linear[8][4];
    start_all<S>(c, linear, keys, values, chunks);
    wait_wgmma<1>(c);
    form.apply_cap(c);
    const float largest = to_weights(c, form.factor, of_rows);
    wait_wgmma(linear);
    float of_tile[2] = {};
    const bool all = queries.all_count(tile * kQueries, kQueries, group_key, kGroupKeys);
    if (all && !__any_sync(~0U, largest > kSmall)) {
      small_energies(c, linear, forms, of_pairs, of_tile);
    } else {
      any_energies(c, linear, forms, of_rows, of_pairs, key, of_tile, [&](int half, int place) {
        return all || queries.counts(layer, tile * kQueries + place, key + 8 * half);
      });
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      of_some[half] += of_tile[half];
      if (tile % kSomeTiles != kSomeTiles - 1) continue;
      sums[half] += of_some[half];
      of_some[half] = 0;
    }
  });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    double sum = sums[half] + of_some[half];
    sum += __shfl_xor_sync(~0U, sum, 1);
    sum += __shfl_xor_sync(~0U, sum, 2);
    const int at = key + 8 * half;
    if (lane_column() == 0 && at < layer.context) by_head[static_cast<size_t>(head) * layer.context + at] = sum;
  }
}

}  // namespace

void far_head_energies_sm90(const HalfTerms& terms, int distance, double* by_head, cudaStream_t stream) {
  const Layer& layer = terms.layer;
  for_half_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    if constexpr (Size <= kMostHalfSize) {
      using S = FarTiles<T, Size>;
      allow_shared_memory(far_energies_kernel<T, Size>, S::kSharedBytes);
      const dim3 grid((layer.context + kBlockKeys - 1) / kBlockKeys, layer.query_heads);
      far_energies_kernel<T, Size><<<grid, Ring<S>::kThreads, S::kSharedBytes, stream>>>(
          terms, tile_map(layer.q, Size, layer.queries, layer.query_heads),
          tile_map(terms.moments, 2 * Size, terms.padded, layer.query_heads), distance, by_head);
    }
  });
  check_launch("energies of removal at distant queries");
}

}  // namespace laprox::cuda
