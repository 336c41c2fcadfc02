#pragma once

#include <vector>

#include "backends/cpu/product.h"
#include "laprox/layer.h"

namespace laprox::cpu {

/// The stored queries [first_query, first_query + queries) of some query heads of one KV head, packed so that the
/// logits of one token against all of them are one row: row r belongs to head first_head + r / head_stride, query r %
/// head_stride. Rows from `queries` to head_stride of a head are padding: their results mean nothing.
class QueryRows {
 public:
  /// head_stride >= queries; a multiple of kLanes lets reductions over one head run on whole vectors.
  QueryRows(const LayerTensors& layer, Index first_head, Index heads, Index first_query, Index queries,
            Index head_stride);

  Index stride() const { return stride_; }  ///< floats from one token's logits to the next
  Index heads() const { return heads_; }
  Index queries() const { return queries_; }
  Index head_stride() const { return head_stride_; }

  /// Logits [last - first, stride()] of the tokens [first, last): scaled, soft-capped, -infinity where a query does not
  /// see the token.
  void logits(Index first, Index last, float* out) const;

 private:
  void mask(Index first, Index last, float* out) const;

  const LayerTensors& layer_;
  Index kv_head_, heads_, queries_, head_stride_, stride_;
  Panels q_;
  Buffer<std::int32_t> positions_;
  Index first_position_, last_position_;
};

/// logit = cap * tanh(logit / cap), in place.
void apply_softcap(float* logits, Index count, double cap);

}  // namespace laprox::cpu
