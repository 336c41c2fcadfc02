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

/// Tiles [first, last) of the queries that are `distance` or more behind the first of `keys` keys from block_key on,
/// and see the last one. window: how far back a query sees.
struct FarTileRange {
  int first, last;
  __device__ FarTileRange(const Layer& layer, int block_key, int keys, int window, int distance, int tile) {
    const long long last_query =
        min(static_cast<long long>(layer.queries), static_cast<long long>(block_key) + keys - 1 + window);
    first = static_cast<int>((static_cast<long long>(block_key) + distance) / tile);
    last = max(first, static_cast<int>((last_query + tile - 1) / tile));
  }
};

/// The energy of an entry at a query, where the entry does not dominate the query's row. logit in the form's units,
/// linear: v (M o) without its scale, form: v M v.
__device__ inline float far_energy(float logit, float factor, const RowTerms& row, float linear, float scale,
                                   float form, float square) {
  const float weight = fast_exp2(__fmaf_rn(logit, factor, -row.maximum)) * row.inverse_sum;
  const float odds = __fdividef(weight, 1 - weight);
  return odds * odds * fmaxf(__fmaf_rn(-scale, linear, form + square), 0);
}

}  // namespace laprox::cuda
