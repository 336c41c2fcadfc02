#include "backends/reference/accumulation.h"

#include "backends/reference/attention.h"

namespace laprox::reference {

namespace {

/// One KV head's cache: when its entries leave, and what each query head has given them.
struct Cache {
  std::vector<std::vector<double>> sums;  ///< [group][T]
  Lifetimes gone;                         ///< [T]

  /// [T]: what the query at this position finds.
  std::vector<bool> found_at(Index position) const {
    std::vector<bool> found(gone.size(), false);
    for (Index i = 0; i <= position && i < static_cast<Index>(gone.size()); ++i) found[i] = gone[i] > position;
    return found;
  }
};

Cache after_prompt(const LayerTensors& layer, const Accumulation& start, Index kv_head) {
  const auto tokens = static_cast<std::size_t>(layer.tokens), context = static_cast<std::size_t>(layer.context_length);
  Cache cache{
      {},
      lifetimes_after_prompt(start.held[kv_head], layer.context_length, layer.tokens, layer.attention.sliding_window)};
  for (Index a = 0; a < layer.geometry.group(); ++a) {
    auto& sums = cache.sums.emplace_back(tokens, 0.0);
    for (std::size_t i = 0; i < context; ++i) {
      sums[i] = start.sums(kv_head * layer.geometry.group() + a, static_cast<Index>(i));
    }
  }
  return cache;
}

/// Once `seen` tokens have been processed: what the next query would find is cut.
void cut(Cache& cache, const Accumulation& start, Index seen) {
  const std::vector<bool> found = cache.found_at(seen);
  std::vector<std::int32_t> entries;
  for (Index i = 0; i < seen; ++i) {
    if (found[i]) entries.push_back(static_cast<std::int32_t>(i));
  }
  Matrix sums(static_cast<Index>(cache.sums.size()), static_cast<Index>(entries.size()));
  for (Index a = 0; a < sums.rows(); ++a) {
    for (Index n = 0; n < sums.cols(); ++n) {
      sums(a, n) = cache.sums[a][entries[n]];
    }
  }
  for (const std::int32_t evicted : start.evict(sums, seen)) {
    cache.gone[entries[evicted]] = static_cast<std::int32_t>(seen);
  }
}

}  // namespace

std::vector<Lifetimes> accumulate(const LayerTensors& layer, const Accumulation& start) {
  std::vector<Lifetimes> lifetimes;
  const Index steps = layer.tokens - layer.context_length, first_row = layer.queries() - steps;
  for (Index kv_head = 0; kv_head < layer.geometry.kv_heads; ++kv_head) {
    Cache cache = after_prompt(layer, start, kv_head);
    for (Index step = 0; step < steps; ++step) {
      const Index position = layer.context_length + step;
      const std::vector<bool> found = cache.found_at(position);
      for (Index a = 0; a < layer.geometry.group(); ++a) {
        const std::vector<double> weights =
            attention_row(layer, kv_head * layer.geometry.group() + a, first_row + step, found);
        auto& sums = cache.sums[a];
        for (std::size_t i = 0; i < weights.size(); ++i) sums[i] += weights[i];
      }
      if (start.schedule.cuts_after(step) && step + 1 < steps) cut(cache, start, position + 1);
    }
    lifetimes.push_back(std::move(cache.gone));
  }
  return lifetimes;
}

}  // namespace laprox::reference
