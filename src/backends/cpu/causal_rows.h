#pragma once

#include "backends/cpu/logits.h"

namespace laprox::cpu {

/// Queries whose whole score rows are held at once; 2 tiles of 8192 keys fill most of a 1 MB second-level cache.
inline constexpr Index kQueryBlock = 2 * kTile;
/// Tasks per query head of a pass over all prompt queries. Fixed, so that the order of sums does not depend on the
/// number of threads.
inline constexpr Index kCausalChunks = 16;

/// The query at which chunk `chunk` of the queries [first, context) begins: chunks of equal area under the causal
/// triangle, in whole blocks.
Index causal_chunk_begin(Index chunk, Index context, Index first = 0);

/// Whole rows of exp(logit - largest) of a block of prompt queries of one query head. The layer stores the last ones,
/// up to context_length - 1.
class CausalRows {
 public:
  /// `keys`: the KV head's keys as columns. Both must outlive the rows.
  CausalRows(const LayerTensors& layer, Index head, const Panels& keys);

  /// Computes the rows of the queries [first_query, last_query), at most kQueryBlock. Columns begin with a key that the
  /// first of them may see, at a multiple of `alignment` keys (itself a multiple of kPanel).
  void compute(Index first_query, Index last_query, Index alignment = kPanel);

  Index rows() const { return rows_; }
  Index stride() const { return stride_; }        ///< columns of a row; those that a query does not see are 0
  Index first_key() const { return first_key_; }  ///< the key of column 0
  float* row(Index row) { return scores_.data() + row * stride_; }
  const float* row(Index row) const { return scores_.data() + row * stride_; }
  float largest(Index row) const { return largest_[row]; }  ///< of the row's logits and the sink's
  float inverse(Index row) const { return inverse_[row]; }  ///< 1 / the sum of the row and of_sink()
  float of_sink(Index row) const { return of_sink_[row]; }  ///< exp(sink - largest), 0 without one

  /// sums[key] += sum over rows of e[row, key] * inverse[row]; float over the few rows of a block, double over blocks.
  void add_columns(double* sums) const;

 private:
  void scale_queries(Index first_query);
  void exponentials(Index row, Index position);

  const LayerTensors& layer_;
  Index head_;
  const Panels& keys_;
  Buffer<float> scores_, queries_;
  Index rows_ = 0, stride_ = 0, first_key_ = 0;
  float largest_[kQueryBlock], inverse_[kQueryBlock], of_sink_[kQueryBlock];
};

}  // namespace laprox::cpu
