#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/half_products.cuh"
#include "backends/cuda/half_removal.h"

namespace laprox::cuda {

namespace {

constexpr int kRowTiles = 1, kWarpTokens = 16 * kRowTiles;  ///< tokens of a warp
constexpr int kBlockWarps = 8, kBlockThreads = 32 * kBlockWarps;
constexpr int kColumnTiles = kRowBlockRows / 8;  ///< of the queries of a row block

/// A lane's share of a warp's tokens by 32 queries: element e of tile (i, n) is the token 16 i + 8 (e / 2) + g at the
/// query 8 n + 2 t + e % 2.
using Cells = float[kRowTiles][kColumnTiles][4];

/// Rows of queries and of moments, which take turns in two places of a block's shared memory.
template <class T, int Size>
using QueryTile = HalfRows<T, Size, kRowBlockRows, kBlockThreads>;
/// Behind the rows of queries or moments stand their terms.
template <int Size>
using MomentTile = HalfRows<__half, 2 * Size, kRowBlockRows, kBlockThreads>;

__device__ inline void clear(Cells& cells) {
#pragma unroll
  for (auto& row : cells) {
#pragma unroll
    for (auto& tile : row) tile[0] = tile[1] = tile[2] = tile[3] = 0;
  }
}

/// products += the products of a warp's tokens with the 32 rows of a tile, from element 8 `first` on of each.
template <class Shape, class T, int Size>
__device__ inline void multiply_all(Cells& products, const LeftRows<T, Size> (&tokens)[kRowTiles], const uint4* tile,
                                    int first) {
  unsigned address[kColumnTiles / 2];
#pragma unroll
  for (int n = 0; n < kColumnTiles / 2; ++n) address[n] = right_address<Shape>(tile, 16 * n, first);
#pragma unroll
  for (int s = 0; s < Size / 16; ++s) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      const uint4 right = load_pieces(address[n / 2] ^ (32 * s));
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        multiply_step<T>(products[i][n], tokens[i].steps[s], right.x, right.y);
        multiply_step<T>(products[i][n + 1], tokens[i].steps[s], right.z, right.w);
      }
    }
  }
}

/// The rows of a warp's tokens of a matrix of one KV head, of which there are `count`.
template <class T, int Size>
__device__ inline void load_tokens(LeftRows<T, Size> (&tokens)[kRowTiles], const T* rows, int count) {
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) tokens[i].load(rows + 16 * i * Size, max(count - 16 * i, 0));
}

/// Where a lane keeps its cells' odds of each head, shared memory of its own.
struct OddsSlots {
  float4* first;
  __device__ float4& operator()(int head, int i, int n) const {
    return first[((head * kRowTiles + i) * kColumnTiles + n) * 32];
  }
};

/// Room for the terms, which keeps tiles at multiples of their row length.
constexpr int kTermChunks = 32;
static_assert(kRowBlockRows * sizeof(RowTerms) <= 16 * kTermChunks);

/// One block of 32 queries, from `first` of the range on, of which there are `count`.
struct QueryBlock {
  int kv_head, first, count;

  template <class T, int Size>
  __device__ void start_queries(const HalfTerms& terms, int head, uint4* target) const {
    const Layer& layer = terms.layer;
    const size_t row = static_cast<size_t>(kv_head * layer.group + head) * layer.queries + terms.range.first + first;
    start_tile<QueryTile<T, Size>>(target, static_cast<const T*>(layer.q) + row * Size, count, 0);
    start_terms(target + QueryTile<T, Size>::kTileBytes / 16,
                terms.row_terms + static_cast<size_t>(kv_head * layer.group + head) * terms.padded + first,
                kRowBlockRows, kRowBlockRows);
  }
  template <int Size>
  __device__ void start_moments(const HalfTerms& terms, int pair, uint4* target) const {
    const size_t row = static_cast<size_t>(kv_head * terms.pairs.count() + pair) * terms.padded + first;
    start_tile<MomentTile<Size>>(target, terms.moments + row * 2 * Size, kRowBlockRows, 0);
    start_terms(target + MomentTile<Size>::kTileBytes / 16, terms.pair_terms + row, kRowBlockRows, kRowBlockRows);
  }
};

/// The odds c = a / (1 - a) of a warp's cells at one head; 0 where the query does not see the token. Where the token is
/// the dominant entry, they are 0 too, and its energy goes to `energies`, which are negative where there is none.
template <class T, int Size>
__device__ inline void form_odds(const HalfTerms& terms, const QueryBlock& block, int head, int token,
                                 const LeftRows<T, Size> (&keys)[kRowTiles], const uint4* queries,
                                 const OddsSlots& slots, Cells& energies) {
  const Layer& layer = terms.layer;
  const LogitForm form(layer);
  const int first_query = terms.range.first + block.first;
  Cells products;
  clear(products);
  multiply_all<QueryTile<T, Size>>(products, keys, queries, 0);
#pragma unroll
  for (auto& row : products) form.apply_cap(row);
  const RowTerms* of_rows = reinterpret_cast<const RowTerms*>(queries + QueryTile<T, Size>::kTileBytes / 16);
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
    int position[2];
    RowTerms of_query[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int query = 8 * n + 2 * lane_column() + e;
      position[e] = query < block.count ? layer.positions[first_query + query] : -1;
      of_query[e] = of_rows[query];
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      float odds[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const RowTerms& row = of_query[e % 2];
        const int at = token + 16 * i + 8 * (e / 2) + lane_row();
        const float weight = fast_exp2(__fmaf_rn(products[i][n][e], form.factor, -row.maximum)) * row.inverse_sum;
        odds[e] = sees(layer, position[e % 2], at) ? __fdividef(weight, 1 - weight) : 0;
        if (at == row.token) {
          // The energy of a head alone is one of several; that of all heads is the cell's, and nothing else is.
          energies[i][n][e] = terms.pairs.joint ? row.energy : fmaxf(energies[i][n][e], 0) + row.energy;
          odds[e] = 0;
        }
      }
      slots(head, i, n) = make_float4(odds[0], odds[1], odds[2], odds[3]);
    }
  }
}

/// Cells whose energy over all `group` heads is known have no odds; the others begin at 0.
__device__ inline void drop_known(int group, const OddsSlots& slots, Cells& energies) {
  bool known = false;
#pragma unroll
  for (const auto& row : energies) {
#pragma unroll
    for (const auto& tile : row) {
#pragma unroll
      for (float energy : tile) known |= energy >= 0;
    }
  }
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      float(&tile)[4] = energies[i][n];
      for (int head = 0; known && head < group; ++head) {
        float4& odds = slots(head, i, n);
        odds = make_float4(tile[0] >= 0 ? 0 : odds.x, tile[1] >= 0 ? 0 : odds.y, tile[2] >= 0 ? 0 : odds.z,
                           tile[3] >= 0 ? 0 : odds.w);
      }
#pragma unroll
      for (float& energy : tile) energy = fmaxf(energy, 0);
    }
  }
}

/// The forms of one pair at a lane's tokens.
using LaneForms = float[kRowTiles][2];
__device__ inline void load_forms(LaneForms& forms, const HalfTerms& terms, const QueryBlock& block, int pair,
                                  int token) {
  const float* of_pair =
      terms.forms + static_cast<size_t>(block.kv_head * terms.pairs.count() + pair) * terms.layer.context;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      forms[i][half] = __ldg(of_pair + min(token + 16 * i + 8 * half + lane_row(), terms.layer.context - 1));
    }
  }
}

/// Adds one pair's terms to the energies of a warp's cells.
template <int Size>
__device__ inline void add_pair(FormPair heads, const LaneForms& forms,
                                const LeftRows<__half, Size> (&values)[kRowTiles], const uint4* moments,
                                const OddsSlots& slots, Cells& energies) {
  Cells linear;
  clear(linear);
  multiply_all<MomentTile<Size>>(linear, values, moments, Chunks<__half, Size>::kRow);
  multiply_all<MomentTile<Size>>(linear, values, moments, 0);
  const float orders = heads.a == heads.b ? 1 : 2;
  const float4* two_terms = reinterpret_cast<const float4*>(moments + MomentTile<Size>::kTileBytes / 16);
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
    const float4 two = two_terms[4 * n + lane_column()];  // scale and square of two queries
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      const float4 of_a = slots(heads.a, i, n), of_b = slots(heads.b, i, n);
      const float odds[4] = {of_a.x * of_b.x, of_a.y * of_b.y, of_a.z * of_b.z, of_a.w * of_b.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float scale = e % 2 ? two.z : two.x, square = e % 2 ? two.w : two.y;
        const float difference = __fmaf_rn(-scale, linear[i][n][e], __fmaf_rn(orders, forms[i][e / 2], square));
        energies[i][n][e] = __fmaf_rn(odds[e], difference, energies[i][n][e]);
      }
    }
  }
}

/// Block (share of the tokens, KV head): a warp has 16 tokens and goes over all queries, 32 at a time. Of these it
/// forms the odds of all heads, then the terms of all pairs, while the next head's queries or pair's moments are on
/// their way.
template <class T, int Size>
__global__ void __launch_bounds__(kBlockThreads, 2)
    window_energies_kernel(HalfTerms terms, bool maximum, double* energies) {
  constexpr int kTileChunks = MomentTile<Size>::kTileBytes / 16 + kTermChunks;
  extern __shared__ __align__(1024) uint4 shared[];
  const Layer& layer = terms.layer;
  const int kv_head = static_cast<int>(blockIdx.y), warp = static_cast<int>(threadIdx.x) / 32;
  const int token = (static_cast<int>(blockIdx.x) * kBlockWarps + warp) * kWarpTokens, count = layer.context - token;
  float4* odds = reinterpret_cast<float4*>(shared + 2 * kTileChunks);
  const OddsSlots slots{odds + warp * layer.group * kRowTiles * kColumnTiles * 32 + threadIdx.x % 32};
  const size_t first_row = static_cast<size_t>(kv_head) * layer.tokens + min(token, layer.context);
  const int pairs = terms.pairs.count();
  double result[kRowTiles][2] = {};
  for (int first = 0; first < terms.range.count; first += kRowBlockRows) {
    const QueryBlock block{kv_head, first, min(kRowBlockRows, terms.range.count - first)};
    const auto start = [&](int stage) {
      uint4* target = shared + stage % 2 * kTileChunks;
      if (stage < layer.group)
        block.start_queries<T, Size>(terms, stage, target);
      else if (stage < layer.group + pairs)
        block.start_moments<Size>(terms, stage - layer.group, target);
      asm volatile("cp.async.commit_group;");
    };
    const auto arrive = [&](int stage) {
      asm volatile("cp.async.wait_group 0;");
      __syncthreads();  // the tile has arrived for all, and all are done with the one whose place is filled next
      start(stage + 1);
      return shared + stage % 2 * kTileChunks;
    };
    __syncthreads();
    start(0);
    Cells cells;
#pragma unroll
    for (auto& row : cells) {
#pragma unroll
      for (auto& tile : row) tile[0] = tile[1] = tile[2] = tile[3] = -1;
    }
    {
      LeftRows<T, Size> keys[kRowTiles];
      load_tokens(keys, static_cast<const T*>(layer.k) + first_row * Size, count);
#pragma unroll 1
      for (int head = 0; head < layer.group; ++head) {
        form_odds(terms, block, head, token, keys, arrive(head), slots, cells);
      }
    }
    drop_known(terms.pairs.joint ? layer.group : 0, slots, cells);
    LeftRows<__half, Size> values[kRowTiles];
    load_tokens(values, terms.values + first_row * Size, count);
#pragma unroll 1
    for (int pair = 0; pair < pairs; ++pair) {
      LaneForms forms;
      load_forms(forms, terms, block, pair, token);
      add_pair(terms.pairs[pair], forms, values, arrive(layer.group + pair), slots, cells);
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float of_block = 0;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          const float x = fmaxf(cells[i][n][2 * half], 0), y = fmaxf(cells[i][n][2 * half + 1], 0);
          of_block = maximum ? fmaxf(of_block, fmaxf(x, y)) : of_block + (x + y);
        }
        result[i][half] = maximum ? fmax(result[i][half], of_block) : result[i][half] + of_block;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      double energy = result[i][half];
      for (int other = 1; other < 4; other *= 2) {
        const double of_other = __shfl_xor_sync(~0U, energy, other);
        energy = maximum ? fmax(energy, of_other) : energy + of_other;
      }
      const int at = 16 * i + 8 * half + lane_row();
      if (lane_column() == 0 && at < count)
        energies[static_cast<size_t>(kv_head) * layer.context + token + at] = energy;
    }
  }
}

}  // namespace

int window_shared_bytes(const Layer& layer) {
  const int odds = kBlockWarps * layer.group * kRowTiles * kColumnTiles * 32 * static_cast<int>(sizeof(float4));
  // Two tiles of moments, high and low parts of value_stride each, with their terms.
  return 2 * (kRowBlockRows * 2 * layer.value_stride * static_cast<int>(sizeof(__half)) + 16 * kTermChunks) + odds;
}

namespace {

void window_energies_sm80(const HalfTerms& terms, bool maximum, double* energies, cudaStream_t stream) {
  const Layer& layer = terms.layer;
  const int shared = window_shared_bytes(layer);
  constexpr int kTokens = kBlockWarps * kWarpTokens;
  const dim3 grid((layer.context + kTokens - 1) / kTokens, layer.kv_heads);
  for_half_and_size(layer.element, layer.head_stride, [&]<class T, int Size>() {
    if constexpr (Size <= kMostHalfSize) {
      allow_shared_memory(window_energies_kernel<T, Size>, shared);
      window_energies_kernel<T, Size><<<grid, kBlockThreads, shared, stream>>>(terms, maximum, energies);
    }
  });
  check_launch("energies of removal");
}

}  // namespace

void window_energies(const HalfTerms& terms, bool maximum, double* energies, cudaStream_t stream) {
  const bool sm90 = use_sm90(terms.layer) && terms.pairs.joint;
  (sm90 ? window_energies_sm90 : window_energies_sm80)(terms, maximum, energies, stream);
}

}  // namespace laprox::cuda
