#pragma once

#include <span>
#include <vector>

#include "backends/batches.h"
#include "backends/cpu/logits.h"

namespace laprox::cpu {

/// The softmax numerators of some query rows of one KV head over one stretch of tokens. They are formed once, relative
/// to the largest logit of the stretch, whatever the number of policies that sum over some of them.
struct WeightBlock {
  const QueryRows& rows;
  Index first, last;     ///< the tokens [first, last)
  const float* logits;   ///< [last - first, stride]
  const float* weights;  ///< [last - first, stride]: exp(logit - maximum); 0 where a query does not see the token
  const float* maximum;  ///< [stride], over the block; -infinity where a query sees none of its tokens
  const float* values;   ///< [last - first, value_size]
  Index value_size;
};

/// target = old_factor target + new_factor source, of `count` elements, a multiple of kLanes.
inline void add_scaled(float* target, float old_factor, const float* source, float new_factor, Index count) {
  for (Index c = 0; c < count; c += kLanes) {
    store(target + c, old_factor * load(target + c) + new_factor * load(source + c));
  }
}

/// maximum[r] = max over tokens of logits[token][r], and from them the weights: never 0 where the query sees the token.
void form_weights(const float* logits, Index tokens, Index stride, float* maximum, float* weights);

/// Softmax numerators over a set of tokens, per query row: largest logit m, sum of exp(logit - m), and the values
/// weighted with them. Partial sums over disjoint sets merge exactly, whatever their order of magnitude.
struct PartialSoftmax {
  PartialSoftmax(Index stride, Index value_stride);
  /// Back to the sum over nothing.
  void clear();
  /// Adds the sum over tokens that are not in this one yet.
  void join(const PartialSoftmax& other);

  Buffer<float> maximum, sum, values;  ///< [stride], [stride], [stride, value_stride]
};

/// Sums over disjoint sets of tokens ("segments"), block of tokens after block.
class SegmentSums {
 public:
  SegmentSums(std::size_t segments, const QueryRows& rows, Index value_size);

  /// Adds those of the block's tokens that are in `tokens` (counted from the block's first) to a segment.
  void add(std::size_t segment, const WeightBlock& block, std::span<const std::int32_t> tokens);
  const std::vector<PartialSoftmax>& sums() const { return sums_; }

 private:
  std::vector<PartialSoftmax> sums_;
};

}  // namespace laprox::cpu
