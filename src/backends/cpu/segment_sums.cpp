#include "backends/cpu/segment_sums.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

namespace laprox::cpu {

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
/// What a token that a query sees weighs at least: a sum is 0 where the query sees none of the tokens, and only there.
constexpr float kLeastWeight = std::numeric_limits<float>::min();
/// A sum of weights below it may have lost terms that count to kLeastWeight: it is formed anew from the logits,
/// relative to their own maximum. Above it, 2^32 such terms change it by less than 1e-8 of itself.
constexpr float kLeastSum = 1e-20F;
constexpr Index kTokenBatch = 128;
/// Batches that are summed in one chain before they join the total: short chains round less.
constexpr std::size_t kChainBatches = 8;

Lanes or_zero(Lanes maximum) { return select(maximum == kNothing, Lanes{}, maximum); }

/// Scratch of one thread, which serves one sum after the other.
struct Scratch {
  Buffer<float> weights, chain_sum, chain_values;
  Panels values;
};

/// Adds rows `tokens` of `weights` [, stride] and of the block's values, product by product, to a cleared `total`.
void sum_weights(const WeightBlock& block, const float* weights, std::span<const std::int32_t> tokens,
                 PartialSoftmax& total) {
  const Index stride = block.rows.stride(), value_stride = padded(block.value_size);
  const Index real_rows = block.rows.heads() * block.rows.head_stride();
  thread_local Scratch scratch;
  float* batch_weights = scratch.weights.at_least(kTokenBatch * stride);
  float* chain_sum = scratch.chain_sum.at_least(stride);
  float* chain_values = scratch.chain_values.at_least(stride * value_stride);
  if (scratch.values.columns() != block.value_size) scratch.values = Panels(kTokenBatch, block.value_size);
  for (std::size_t first = 0; first < tokens.size(); first += kTokenBatch) {
    const auto batch = tokens.subspan(first, std::min<std::size_t>(kTokenBatch, tokens.size() - first));
    const bool starts_chain = first / kTokenBatch % kChainBatches == 0;
    if (starts_chain) std::fill_n(chain_sum, stride, 0.0F);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const float* from = weights + batch[i] * stride;
      float* to = batch_weights + static_cast<Index>(i) * stride;
      for (Index r = 0; r < stride; r += kLanes) {
        const Lanes weight = load(from + r);
        store(to + r, weight);
        store(chain_sum + r, load(chain_sum + r) + weight);
      }
      scratch.values.set_row(static_cast<Index>(i), block.values + batch[i] * block.value_size);
    }
    multiply(real_rows, static_cast<Index>(batch.size()), {batch_weights, 1, stride}, scratch.values, 0,
             scratch.values.count(), chain_values, value_stride, !starts_chain);
    const bool ends_chain = first + kTokenBatch >= tokens.size() || (first / kTokenBatch + 1) % kChainBatches == 0;
    if (!ends_chain) continue;
    add_scaled(total.sum.data(), 1, chain_sum, 1, stride);
    add_scaled(total.values.data(), 1, chain_values, 1, real_rows * value_stride);
  }
}

bool is_weak(float sum) { return sum > 0 && sum < kLeastSum; }

/// Forms the rows of `total` whose weights are too small beside the block's largest from the logits themselves.
void sum_weak_rows(const WeightBlock& block, std::span<const std::int32_t> tokens, PartialSoftmax& total) {
  const Index stride = block.rows.stride(), value_stride = padded(block.value_size);
  if (std::none_of(total.sum.data(), total.sum.data() + stride, is_weak)) return;
  const auto count = static_cast<Index>(tokens.size());
  Buffer<float> logits(count * stride), weights(count * stride), maximum(stride);
  for (Index n = 0; n < count; ++n) {
    std::copy_n(block.logits + tokens[static_cast<std::size_t>(n)] * stride, stride, logits.data() + n * stride);
  }
  form_weights(logits.data(), count, stride, maximum.data(), weights.data());
  // The rows of the weights are in the order of `tokens`, those of the values in the block's.
  Buffer<float> scattered((block.last - block.first) * stride);
  for (Index n = 0; n < count; ++n) {
    std::copy_n(weights.data() + n * stride, stride, scattered.data() + tokens[static_cast<std::size_t>(n)] * stride);
  }
  PartialSoftmax own(stride, value_stride);
  sum_weights(block, scattered.data(), tokens, own);
  for (Index r = 0; r < stride; ++r) {
    if (!is_weak(total.sum[r])) continue;
    total.maximum[r] = maximum[r];
    total.sum[r] = own.sum[r];
    std::copy_n(&own.values[r * value_stride], value_stride, &total.values[r * value_stride]);
  }
}

}  // namespace

void form_weights(const float* logits, Index tokens, Index stride, float* maximum, float* weights) {
  std::fill_n(maximum, stride, kNothing);
  for (Index token = 0; token < tokens; ++token) {
    const float* row = logits + token * stride;
    for (Index r = 0; r < stride; r += kLanes) store(maximum + r, max(load(maximum + r), load(row + r)));
  }
  for (Index token = 0; token < tokens; ++token) {
    const float* row = logits + token * stride;
    for (Index r = 0; r < stride; r += kLanes) {
      const Lanes logit = load(row + r), e = exp_nonpositive(logit - or_zero(load(maximum + r)));
      const Lanes seen = select(e < kLeastWeight, broadcast(kLeastWeight), e);
      store(weights + token * stride + r, select(logit == kNothing, Lanes{}, seen));
    }
  }
}

PartialSoftmax::PartialSoftmax(Index stride, Index value_stride)
    : maximum(stride), sum(stride), values(stride * value_stride) {
  clear();
}

void PartialSoftmax::clear() {
  std::fill_n(maximum.data(), maximum.size(), kNothing);
  std::fill_n(sum.data(), sum.size(), 0.0F);
  std::fill_n(values.data(), values.size(), 0.0F);
}

void PartialSoftmax::join(const PartialSoftmax& other) {
  const Index stride = maximum.size(), value_stride = values.size() / stride;
  for (Index r = 0; r < stride; ++r) {
    if (other.maximum[r] == kNothing) continue;
    const float largest = std::max(maximum[r], other.maximum[r]);
    const auto mine = static_cast<float>(std::exp(static_cast<double>(maximum[r]) - largest));
    const auto theirs = static_cast<float>(std::exp(static_cast<double>(other.maximum[r]) - largest));
    maximum[r] = largest;
    sum[r] = mine * sum[r] + theirs * other.sum[r];
    add_scaled(&values[r * value_stride], mine, &other.values[r * value_stride], theirs, value_stride);
  }
}

SegmentSums::SegmentSums(std::size_t segments, const QueryRows& rows, Index value_size) {
  for (std::size_t s = 0; s < segments; ++s) sums_.emplace_back(rows.stride(), padded(value_size));
}

void SegmentSums::add(std::size_t segment, const WeightBlock& block, std::span<const std::int32_t> tokens) {
  if (tokens.empty()) return;
  const Index stride = block.rows.stride();
  thread_local std::unique_ptr<PartialSoftmax> part;
  if (!part || part->maximum.size() != stride || part->values.size() != sums_[segment].values.size()) {
    part = std::make_unique<PartialSoftmax>(stride, padded(block.value_size));
  }
  part->clear();
  sum_weights(block, block.weights, tokens, *part);
  for (Index r = 0; r < stride; ++r) part->maximum[r] = part->sum[r] == 0 ? kNothing : block.maximum[r];
  sum_weak_rows(block, tokens, *part);
  sums_[segment].join(*part);
}

}  // namespace laprox::cpu
