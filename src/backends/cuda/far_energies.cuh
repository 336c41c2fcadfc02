#pragma once

#include "backends/cuda/half_products.cuh"
#include "backends/cuda/half_removal.h"
#include "backends/cuda/rows.cuh"

namespace laprox::cuda {

// What both kernels of far energies are made of: the one for any device and the one for sm_90a.

/// Shape of a stream (see stream.cuh) of queries, behind which their moments and terms stand in the tile.
template <class Queries, class MomentRows>
struct FarShape : Queries {
  using Moments = MomentRows;
  static constexpr int kMomentChunks = Queries::kTileBytes / 16;
  static constexpr int kRowChunks = kMomentChunks + Moments::kTileBytes / 16;
  static constexpr int kPairChunks = kRowChunks + Queries::kTileRows * static_cast<int>(sizeof(RowTerms)) / 16;
  static constexpr int kTileBytes = 16 * kPairChunks + Queries::kTileRows * static_cast<int>(sizeof(PairTerms));
  static constexpr int kStages = 2;
  static constexpr int kSharedBytes = kStages * kTileBytes;
};

/// Starts to copy what stands behind tile `tile` of the queries. of_head: the head's first padded query.
template <class Shape, int Size>
__device__ inline void start_far_terms(uint4* chunks, const HalfTerms& terms, size_t of_head, int tile) {
  constexpr int kQueries = Shape::kTileRows;
  const int start = tile * kQueries, real = max(terms.padded - start, 0);
  start_tile<typename Shape::Moments>(chunks + Shape::kMomentChunks, terms.moments + of_head * 2 * Size, terms.padded,
                                      tile);
  start_terms(chunks + Shape::kRowChunks, terms.row_terms + of_head + start, kQueries, real);
  start_terms(chunks + Shape::kPairChunks, terms.pair_terms + of_head + start, kQueries, real);
}

/// The queries of a pass, the last prompt ones, by their rows: row r is at the position first_position + r.
struct FarQueries {
  int count, first_position, distance;
  int window;  ///< how far back a query sees

  __device__ FarQueries(const HalfTerms& terms, int far)
      : count(terms.range.count),
        first_position(terms.layer.context - terms.range.count),
        distance(far),
        window(terms.layer.sliding_window > 0 ? terms.layer.sliding_window : terms.layer.context) {}
  /// The head's queries from row 0 on.
  template <class T, int Size>
  __device__ const T* rows(const HalfTerms& terms, int head) const {
    const size_t first = static_cast<size_t>(head) * terms.layer.queries + terms.range.first;
    return static_cast<const T*>(terms.layer.q) + first * Size;
  }
  /// Whether `rows` rows from `row` on all count for `keys` keys from `key` on.
  __device__ bool all_count(int row, int rows, int key, int keys) const {
    const int position = first_position + row;
    return position >= key + keys - 1 + distance && position + rows - 1 < key + window && row + rows <= count;
  }
  /// Whether one row counts for one key.
  __device__ bool counts(const Layer& layer, int row, int key) const {
    const int position = first_position + row;
    return row < count && position >= key + distance && sees(layer, position, key);
  }
};

/// Tiles [first, last) of the rows that count for one of `keys` keys from block_key on.
struct FarTileRange {
  int first, last;
  __device__ FarTileRange(const FarQueries& queries, int block_key, int keys, int tile) {
    const long long begin = static_cast<long long>(block_key) + queries.distance - queries.first_position;
    const long long end = static_cast<long long>(block_key) + keys - 1 + queries.window - queries.first_position;
    first = static_cast<int>(max(begin, 0LL) / tile);
    last = max(first, static_cast<int>((min(end, static_cast<long long>(queries.count)) + tile - 1) / tile));
  }
};

/// The weight of an entry at a query; logit in the form's units.
__device__ inline float far_weight(float logit, float factor, const RowTerms& row) {
  return fast_exp2(__fmaf_rn(logit, factor, -row.maximum)) * row.inverse_sum;
}
/// The energy of an entry at a query, where it does not dominate the query's row. linear: v (M o) without its scale,
/// form: v M v.
__device__ inline float far_energy(float weight, float linear, float scale, float form, float square) {
  const float odds = __fdividef(weight, 1 - weight);
  return odds * odds * fmaxf(__fmaf_rn(-scale, linear, form + square), 0);
}

}  // namespace laprox::cuda
