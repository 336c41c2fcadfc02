#include <algorithm>
#include <utility>

#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/window_tiles_sm90.cuh"

namespace laprox::cuda {

namespace {

/// A lane's cells at 32 queries: 4 n + e is the token g + 8 (e / 2) at the query 8 n + 2 t + e % 2.
constexpr int kCells = 4 * kQueries / 8;

/// Starts to copy what a tile of the ring has: of the KV head's queries from `first` on, the `at`-th head's or pair's.
template <int Size, int Heads>
__device__ inline void start_tile(const HalfTerms& terms, const CUtensorMap& of_queries, const CUtensorMap& of_moments,
                                  int kv_head, int first, int at, uint4* chunks, Arrival& arrival) {
  using S = WindowTiles<Size, Heads>;
  constexpr int kPanels = Size / 64;
  const auto start = [&](const CUtensorMap& map, int row, int matrix, int parts, const void* of_rows, int each) {
    arrival.expect(parts * kPanels * S::kPanelChunks * 16 + kQueries * each);
    for (int part = 0; part < parts; ++part) {
      for (int panel = 0; panel < kPanels; ++panel) {
        uint4* target = chunks + (parts * panel + part) * S::kPanelChunks;
        arrival.start_panel(target, map, 64 * (kPanels * part + panel), row, matrix);
      }
    }
    arrival.start_copy(chunks + S::kTermChunks, of_rows, kQueries * each);
  };
  if (at < Heads) {
    const int head = kv_head * Heads + at;
    start(of_queries, terms.range.first + first, head, 1,
          terms.row_terms + static_cast<size_t>(head) * terms.padded + first, sizeof(RowTerms));
  } else {
    const int pair = kv_head * S::kPairs + at - Heads;
    start(of_moments, first, pair, 2, terms.pair_terms + static_cast<size_t>(pair) * terms.padded + first,
          sizeof(PairTerms));
  }
}

/// Starts the products of a warpgroup's keys with the queries of a tile.
template <class T, int Size>
__device__ inline void start_logits(float (&c)[kCells], const LeftRows<T, Size>& keys, const uint4* tile) {
  const RightFactor queries = RightFactor::panels(tile);
  start_wgmma();
#pragma unroll
  for (int s = 0; s < Size / 16; ++s) wgmma<T>(c, keys.steps[s], queries + (s / 4 * kQueries * 8 + s % 4 * 2), s > 0);
  commit_wgmma();
}

/// Starts the products of a warpgroup's values with the moments of a tile, the low parts first.
template <int Size>
__device__ inline void start_linear(float (&c)[kCells], const LeftRows<__half, Size>& values, const uint4* tile) {
  const RightFactor moments = RightFactor::panels(tile);
  start_wgmma();
#pragma unroll
  for (int s = 0; s < Size / 16; ++s) {
    wgmma<__half>(c, values.steps[s], moments + ((s / 4 * 2 + 1) * kQueries * 8 + s % 4 * 2), s > 0);
  }
#pragma unroll
  for (int s = 0; s < Size / 16; ++s) {
    wgmma<__half>(c, values.steps[s], moments + (s / 4 * 2 * kQueries * 8 + s % 4 * 2), true);
  }
  commit_wgmma();
}

/// A bit for each of a lane's cells: whether the query sees the token. first: the queries', of terms.range; token: the
/// lane's first one; group_token: its warpgroup's.
__device__ inline unsigned seen_cells(const HalfTerms& terms, int first, int group_token, int token) {
  const Layer& layer = terms.layer;
  const int queries = min(kQueries, terms.range.count - first);
  const int* positions = layer.positions + terms.range.first + first;
  if (queries == kQueries && group_token + kGroupTokens - 1 <= positions[0] &&
      group_token >= first_visible(layer, positions[kQueries - 1])) {
    return ~0U;
  }
  unsigned seen = 0;
#pragma unroll 1
  for (int cell = 0; cell < kCells; ++cell) {
    const int query = 8 * (cell / 4) + 2 * lane_column() + cell % 2;
    if (query < queries && sees(layer, positions[query], token + 8 * (cell / 2 % 2))) seen |= 1U << cell;
  }
  return seen;
}

/// 1 / x within 1 unit in the last place.
__device__ inline float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The products of one head become the odds c = a / (1 - a), 0 where the query does not see the token. Where the token
/// is the dominant entry, they are 0 too, and its energy goes to `energies`.
__device__ inline void to_odds(float (&c)[kCells], const LogitForm& form, unsigned seen, int token,
                               const RowTerms* of_rows, float (&energies)[kCells]) {
  if (form.cap != 0) {
#pragma unroll
    for (float& x : c) x = form.cap * tanhf(x * form.inner);
  }
#pragma unroll
  for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int query = 8 * n + 2 * lane_column() + e;
      const RowTerms row = of_rows[query];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int cell = 4 * n + 2 * half + e;
        const float weight = fast_exp2(__fmaf_rn(c[cell], form.factor, -row.maximum)) * row.inverse_sum;
        const bool dominant = token + 8 * half == row.token;
        c[cell] = (seen >> cell & 1) != 0 && !dominant ? weight * fast_reciprocal(1 - weight) : 0;
        if (dominant) energies[cell] = row.energy;
      }
    }
  }
}

/// Cells whose energy over all heads is known have no odds; the others' energies begin at 0.
template <int Heads>
__device__ inline void drop_known(float (&odds)[Heads][kCells], float (&energies)[kCells]) {
  bool known = false;
#pragma unroll
  for (float energy : energies) known |= energy >= 0;
  if (__any_sync(~0U, known)) {
#pragma unroll
    for (auto& of_head : odds) {
#pragma unroll
      for (int cell = 0; cell < kCells; ++cell) of_head[cell] = energies[cell] >= 0 ? 0 : of_head[cell];
    }
  }
#pragma unroll
  for (float& energy : energies) energy = fmaxf(energy, 0);
}

/// Adds the terms of one pair of heads, whose odds are `a` and `b`, to the energies. quadratic: of the lane's two
/// tokens, in as many orders as the pair stands for.
__device__ inline void add_pair(const float (&a)[kCells], const float (&b)[kCells], const float (&linear)[kCells],
                                const float (&quadratic)[2], const uint4* of_pair, float (&energies)[kCells]) {
  const float4* two_terms = reinterpret_cast<const float4*>(of_pair);
#pragma unroll
  for (int n = 0; n < kQueries / 8; ++n) {
    const float4 two = two_terms[4 * n + lane_column()];  // scale and square of two queries
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int cell = 4 * n + e;
      const float scale = e % 2 ? two.z : two.x, square = e % 2 ? two.w : two.y;
      const float difference = __fmaf_rn(-scale, linear[cell], quadratic[e / 2] + square);
      energies[cell] = __fmaf_rn(a[cell] * b[cell], difference, energies[cell]);
    }
  }
}

/// A lane's energies of its two tokens, summed or the largest ones, joined with `result`.
__device__ inline void over_queries(const float (&energies)[kCells], bool maximum, double (&result)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float of_block = 0;
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const float x = fmaxf(energies[4 * n + 2 * half], 0), y = fmaxf(energies[4 * n + 2 * half + 1], 0);
      of_block = maximum ? fmaxf(of_block, fmaxf(x, y)) : of_block + (x + y);
    }
    result[half] = maximum ? fmax(result[half], of_block) : result[half] + of_block;
  }
}

/// The odds of all heads at a warpgroup's tokens, from the ring's tiles from `tile` on.
template <class S, class T, int Size, int Heads>
__device__ inline void form_odds(float (&odds)[Heads][kCells], float (&energies)[kCells], const Ring<S>& ring, int tile,
                                 const LeftRows<T, Size>& keys, const LogitForm& form, unsigned seen, int token) {
#pragma unroll
  for (float& energy : energies) energy = -1;
#pragma unroll
  for (int head = 0; head < Heads; ++head) {
    ring.wait_for(tile + head);
    const uint4* chunks = ring.tile(tile + head);
    start_logits(odds[head], keys, chunks);
    wait_wgmma(odds[head]);
    to_odds(odds[head], form, seen, token, reinterpret_cast<const RowTerms*>(chunks + S::kTermChunks), energies);
    ring.release(tile + head);
  }
  drop_known(odds, energies);
}

/// Adds the terms of all pairs, from the ring's tiles from `tile` on.
template <class S, int Size, int Heads>
__device__ inline void add_pairs(float (&energies)[kCells], const float (&odds)[Heads][kCells], const Ring<S>& ring,
                                 int tile, const LeftRows<__half, Size>& values, const WarpForms<S>& forms) {
#pragma unroll
  for (int a = 0; a < Heads; ++a) {
#pragma unroll
    for (int b = a; b < Heads; ++b) {
      const int pair = a * Heads - a * (a - 1) / 2 + b - a;
      float linear[kCells];
      const float orders = a == b ? 1 : 2, quadratic[2] = {orders * forms(pair, 0), orders * forms(pair, 1)};
      ring.wait_for(tile + pair);
      start_linear(linear, values, ring.tile(tile + pair));
      wait_wgmma(linear);
      add_pair(odds[a], odds[b], linear, quadratic, ring.tile(tile + pair) + S::kTermChunks, energies);
      ring.release(tile + pair);
    }
  }
}

/// Tensor maps of what the kernel reads in panels.
struct WindowMaps {
  CUtensorMap queries, moments, keys, values;
};

/// Block (share of the groups of tokens, KV head): a warpgroup has 64 tokens at a time and goes over all queries, 32 at
/// a time, which is a pass. Of these it forms the odds of all heads, then the terms of all pairs.
template <class T, int Size, int Heads>
__global__ void __launch_bounds__(Ring<WindowTiles<Size, Heads>>::kThreads, 1)
    window_energies_kernel(HalfTerms terms, const __grid_constant__ WindowMaps maps, bool maximum, double* result_of) {
  using S = WindowTiles<Size, Heads>;
  extern __shared__ __align__(1024) uint4 shared[];
  __shared__ typename Ring<S>::Signals signals;
  __shared__ typename BlockTokens<S>::Signals token_signals;
  const Layer& layer = terms.layer;
  const int kv_head = static_cast<int>(blockIdx.y), blocks = static_cast<int>(gridDim.x);
  const int query_blocks = (terms.range.count + kQueries - 1) / kQueries;
  const int groups = (layer.context + S::kBlockTokens - 1) / S::kBlockTokens;
  const int own_groups = (groups - static_cast<int>(blockIdx.x) + blocks - 1) / blocks;
  const BlockTokens<S> tokens(shared + S::kStages * S::kTileBytes / 16, token_signals);
  const Ring<S> ring(shared, signals, 0, own_groups * query_blocks * S::kTiles);
  if (ring.fills()) {
    ring.fill([&](int tile, uint4* chunks, Arrival& arrival) {
      const int pass = tile / S::kTiles, at = tile % S::kTiles;
      if (at == 0) {
        const int first = (static_cast<int>(blockIdx.x) + pass / query_blocks * blocks) * S::kBlockTokens;
        tokens.start(0, maps.keys, first, kv_head, pass);
        tokens.start(1, maps.values, first, kv_head, pass);
      }
      start_tile<Size, Heads>(terms, maps.queries, maps.moments, kv_head, pass % query_blocks * kQueries, at, chunks,
                              arrival);
    });
    return;
  }
  ring.begin_reading();

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const LogitForm form(layer);
  const WarpForms<S> forms(reinterpret_cast<float*>(shared + S::kFormsBegin / 16));
  int pass = 0;
#pragma unroll 1
  for (int group = static_cast<int>(blockIdx.x); group < groups; group += blocks) {
    const int group_token = group * S::kBlockTokens + warp / 4 * kGroupTokens;
    const int first = group_token + warp % 4 * kWarpTokens, token = first + lane_row();
    forms.start(terms.forms + static_cast<size_t>(kv_head) * S::kPairs * layer.context, first, layer.context);
    double result[2] = {};
#pragma unroll 1
    for (int block = 0; block < query_blocks; ++block, ++pass) {
      float odds[Heads][kCells], energies[kCells];
      const unsigned seen = seen_cells(terms, block * kQueries, group_token, token);
      {
        LeftRows<T, Size> keys;
        tokens.take(0, keys, pass);
        form_odds(odds, energies, ring, pass * S::kTiles, keys, form, seen, token);
      }
      LeftRows<__half, Size> values;
      tokens.take(1, values, pass);
      forms.wait();
      add_pairs(energies, odds, ring, pass * S::kTiles + Heads, values, forms);
      over_queries(energies, maximum, result);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      double energy = result[half];
      for (int other = 1; other < 4; other *= 2) {
        const double of_other = __shfl_xor_sync(~0U, energy, other);
        energy = maximum ? fmax(energy, of_other) : energy + of_other;
      }
      const int at = token + 8 * half;
      if (lane_column() == 0 && at < layer.context) {
        result_of[static_cast<size_t>(kv_head) * layer.context + at] = energy;
      }
    }
  }
}

template <class T, int Size, int Heads>
void launch(const HalfTerms& terms, bool maximum, double* energies, cudaStream_t stream) {
  using S = WindowTiles<Size, Heads>;
  const Layer& layer = terms.layer;
  const int groups = (layer.context + S::kBlockTokens - 1) / S::kBlockTokens;
  const dim3 grid(std::clamp(device_limits().multiprocessors / layer.kv_heads, 1, groups), layer.kv_heads);
  const WindowMaps maps{tile_map(layer.q, Size, layer.queries, layer.query_heads, kQueries),
                        tile_map(terms.moments, 2 * Size, terms.padded, layer.kv_heads * S::kPairs, kQueries),
                        tile_map(layer.k, Size, layer.tokens, layer.kv_heads),
                        tile_map(terms.values, Size, layer.tokens, layer.kv_heads)};
  allow_shared_memory(window_energies_kernel<T, Size, Heads>, S::kSharedBytes);
  window_energies_kernel<T, Size, Heads>
      <<<grid, Ring<S>::kThreads, S::kSharedBytes, stream>>>(terms, maps, maximum, energies);
}

}  // namespace

void window_energies_sm90(const HalfTerms& terms, bool maximum, double* energies, cudaStream_t stream) {
  for_half_and_size(terms.layer.element, terms.layer.head_stride, [&]<class T, int Size>() {
    if constexpr (Size <= kMostHalfSize) {
      const auto launch_for = [&]<int... Heads>(std::integer_sequence<int, Heads...>) {
        ((Heads + 1 == terms.layer.group ? launch<T, Size, Heads + 1>(terms, maximum, energies, stream) : void()), ...);
      };
      launch_for(std::make_integer_sequence<int, kMostGroup>());
    }
  });
  check_launch("energies of removal");
}

}  // namespace laprox::cuda
