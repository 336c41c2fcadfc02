#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/far_energies.cuh"
#include "backends/cuda/stream_sm90.cuh"

namespace laprox::cuda {

namespace {

constexpr int kGroupKeys = 64;  ///< of a warpgroup, 16 per warp
constexpr int kKeyGroups = 3;   ///< warpgroups per block: what registers allow
constexpr int kBlockKeys = kKeyGroups * kGroupKeys;
constexpr int kQueries = 128;  ///< streamed at a time

template <class T, int Row>
struct FarRows : HalfTiles<T, Row, kQueries> {
  static constexpr int kBlockThreads = 128 * kKeyGroups;
};
template <class T, int Size>
struct FarTiles : FarShape<FarRows<T, Size>, FarRows<__half, 2 * Size>> {
  static_assert(FarTiles::kTileBytes % 1024 == 0, "panels are exchanged within 1024 bytes");
};

/// Starts a warpgroup's products with 64 queries, the `part`-th of a tile: its keys with the queries, and its values
/// with the moments.
template <class S, class T, int Size>
__device__ inline void start_all(float (&c)[8][4], float (&linear)[8][4], const LeftRows<T, Size>& keys,
                                 const LeftRows<__half, Size>& values, const uint4* tile, int part) {
  const RightFactor queries = RightFactor::panels(tile + part * 64 * 8);
  const RightFactor moments = RightFactor::panels(tile + S::kMomentChunks + part * 64 * 8);
  constexpr int kLowPanel = Size / 64;
  start_wgmma();
#pragma unroll
  for (int s = 0; s < Size / 16; ++s)
    wgmma<T>(c, keys.steps[s], queries + (s / 4 * S::kPanelChunks + s % 4 * 2), s > 0);
#pragma unroll
  for (int s = 0; s < Size / 16; ++s) {
    const int at = s / 4 * S::Moments::kPanelChunks + s % 4 * 2;
    wgmma<__half>(linear, values.steps[s], moments + (at + kLowPanel * S::Moments::kPanelChunks), s > 0);
    wgmma<__half>(linear, values.steps[s], moments + at, true);
  }
  commit_wgmma();
}

/// Calls visit(j, e, place, pair) for those of 64 queries that a lane has: `place`, whose products are c[j][2 half +
/// e].
template <class Visit>
__device__ inline void visit_queries(const PairTerms* of_pairs, const Visit& visit) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float4 pairs = reinterpret_cast<const float4*>(of_pairs)[4 * j + lane_column()];
    visit(j, 0, 8 * j + 2 * lane_column(), PairTerms{pairs.x, pairs.y});
    visit(j, 1, 8 * j + 2 * lane_column() + 1, PairTerms{pairs.z, pairs.w});
  }
}

/// The energies of a lane's two keys at 64 queries, summed, where no weight is above kSmall, so that 1 / (1 - a)^2 is a
/// short series: exact to 3e-7 of itself. False, and nothing summed, where one is, in any lane of the warp.
__device__ inline bool small_energies(const float (&c)[8][4], const float (&linear)[8][4], float factor,
                                      const float (&forms)[2], const RowTerms* of_rows, const PairTerms* of_pairs,
                                      float (&sums)[2]) {
  constexpr float kSmall = 0x1p-6F;
  float largest = 0;
  sums[0] = sums[1] = 0;
  visit_queries(of_pairs, [&](int j, int e, int place, const PairTerms& pair) {
    const float2 row = *reinterpret_cast<const float2*>(of_rows + place);  // the softmax stands first
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float weight = fast_exp2(__fmaf_rn(c[j][2 * half + e], factor, -row.x)) * row.y;
      const float series = __fmaf_rn(__fmaf_rn(__fmaf_rn(4, weight, 3), weight, 2), weight, 1);
      const float form = fmaxf(__fmaf_rn(-pair.scale, linear[j][2 * half + e], forms[half] + pair.square), 0);
      sums[half] = __fmaf_rn(weight * weight * series, form, sums[half]);
      largest = fmaxf(largest, weight);
    }
  });
  return !__any_sync(~0U, largest > kSmall);
}

/// The same for all weights, of the places for which counts(half, place) is true. key: the lane's first one.
template <class Counts>
__device__ inline void any_energies(const float (&c)[8][4], const float (&linear)[8][4], float factor,
                                    const float (&forms)[2], const RowTerms* of_rows, const PairTerms* of_pairs,
                                    int key, float (&sums)[2], const Counts& counts) {
  sums[0] = sums[1] = 0;
  visit_queries(of_pairs, [&](int j, int e, int place, const PairTerms& pair) {
    const RowTerms row = of_rows[place];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float logit = c[j][2 * half + e], product = linear[j][2 * half + e];
      float energy = far_energy(logit, factor, row, product, pair.scale, forms[half], pair.square);
      if (key + 8 * half == row.token) energy = row.energy;
      sums[half] += counts(half, place) ? energy : 0;
    }
  });
}

/// As in far_energies.cu: block (head, group of keys) keeps keys and values and streams the queries that are far behind
/// them. A lane has the keys g and g + 8 of its warp's 16.
template <class T, int Size>
__global__ void __launch_bounds__(FarTiles<T, Size>::kBlockThreads, 1)
    far_energies_kernel(HalfTerms terms, int distance, double* by_head) {
  using S = FarTiles<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const Layer& layer = terms.layer;
  const int head = static_cast<int>(blockIdx.x), kv_head = head / layer.group;
  // Earlier keys are seen by more queries: they begin first.
  const int block_key = static_cast<int>(blockIdx.y) * kBlockKeys, warp = static_cast<int>(threadIdx.x) / 32;
  const int group_key = block_key + warp / 4 * kGroupKeys, warp_key = group_key + warp % 4 * 16,
            key = warp_key + lane_row();
  const FarQueries queries(terms, distance);
  const FarTileRange tiles(queries, block_key, kBlockKeys, kQueries);

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
  const size_t of_head = static_cast<size_t>(head) * terms.padded;
  const LogitForm form(layer);
  double sums[2] = {};

  const auto add = [&](float(&c)[8][4], const float(&linear)[8][4], int first_query, const RowTerms* of_rows,
                       const PairTerms* of_pairs) {
    form.apply_cap(c);
    const bool all = queries.all_count(first_query, 64, group_key, kGroupKeys);
    float of_part[2];  // short chains of sums keep their digits
    if (!all || !small_energies(c, linear, form.factor, forms, of_rows, of_pairs, of_part)) {
      any_energies(c, linear, form.factor, forms, of_rows, of_pairs, key, of_part, [&](int half, int place) {
        return all || queries.counts(layer, first_query + place, key + 8 * half);
      });
    }
    sums[0] += of_part[0];
    sums[1] += of_part[1];
  };
  stream_tiles<S>(
      queries.rows<T, Size>(terms, head), queries.count, tiles.first, tiles.last, shared,
      [&](int tile, const uint4* chunks) {
        const RowTerms* of_rows = reinterpret_cast<const RowTerms*>(chunks + S::kRowChunks);
        const PairTerms* of_pairs = reinterpret_cast<const PairTerms*>(chunks + S::kPairChunks);
#pragma unroll 1
        for (int part = 0; part < kQueries / 64; ++part) {
          float c[8][4], linear[8][4];
          start_all<S>(c, linear, keys, values, chunks, part);
          wait_wgmma(c);
          wait_wgmma(linear);
          add(c, linear, tile * kQueries + 64 * part, of_rows + 64 * part, of_pairs + 64 * part);
        }
      },
      [&](int tile, uint4* chunks) { start_far_terms<S, Size>(chunks, terms, of_head, tile); });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    double sum = sums[half];
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
      const dim3 grid(layer.query_heads, (layer.context + kBlockKeys - 1) / kBlockKeys);
      far_energies_kernel<T, Size><<<grid, S::kBlockThreads, S::kSharedBytes, stream>>>(terms, distance, by_head);
    }
  });
  check_launch("energies of removal at distant queries");
}

}  // namespace laprox::cuda
