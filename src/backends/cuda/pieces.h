#pragma once

#include "backends/cuda/walk.h"
#include "laprox/backend.h"

namespace laprox::cuda {

/// Cuts the tokens of a KV head into pieces and runs walk.cu on them, for the logit tables of one range of queries.
class Pieces {
 public:
  /// For walks with at most `cells` kept sets.
  Pieces(const Layer& layer, QueryRange range, Index cells, cudaStream_t stream);

  /// The exact head outputs of the range's queries to cell 0 of `out`, all tokens in their natural order.
  void exact(int kv_head, const float* logits, OutputRows out);
  /// Kept outputs, these minus the exact ones, and evicted shares, of the sets of each KV head's first counts[b] tokens
  /// of `ranking` and all decoded tokens; set b goes to cell b of `out` and `shares`.
  void walk(int kv_head, const float* logits, const Ranking& ranking, const std::vector<Index>& counts, bool truncated,
            OutputRows out, ShareRows shares);

 private:
  void sum_pieces(int kv_head, const float* logits, const std::vector<int>& bounds, const int* order);
  TableShape shape(int kv_head) const;

  Layer layer_;
  QueryRange range_;
  cudaStream_t stream_;
  DeviceBuffer<float> maximum_, sum_, values_;
  DeviceBuffer<int> order_, bounds_, segments_, slots_;
};

}  // namespace laprox::cuda
