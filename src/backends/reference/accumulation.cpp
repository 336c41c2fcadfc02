#include "backends/reference/accumulation.h"

#include "backends/reference/attention.h"

namespace laprox::reference {

namespace {

/// One KV head's cache: which tokens it holds, and what each of its query heads has given them.
struct Cache {
  std::vector<bool> holds;                ///< [T]
  std::vector<std::vector<double>> sums;  ///< [group][T]
  Lifetimes gone;                         ///< [T]

  std::vector<std::int32_t> entries() const {
    std::vector<std::int32_t> tokens;
    for (std::size_t i = 0; i < holds.size(); ++i) {
      if (holds[i]) tokens.push_back(static_cast<std::int32_t>(i));
    }
    return tokens;
  }
};

Cache after_prompt(const LayerTensors& layer, const Accumulation& start, Index kv_head) {
  const auto tokens = static_cast<std::size_t>(layer.tokens), context = static_cast<std::size_t>(layer.context_length);
  const auto& held = start.held[kv_head];
  Cache cache{std::vector<bool>(tokens, false), {}, lifetimes_after_prompt(held, layer.context_length, layer.tokens)};
  for (const std::int32_t token : held) cache.holds[token] = true;
  for (Index a = 0; a < layer.geometry.group(); ++a) {
    auto& sums = cache.sums.emplace_back(tokens, 0.0);
    for (std::size_t i = 0; i < context; ++i) {
      sums[i] = start.sums(kv_head * layer.geometry.group() + a, static_cast<Index>(i));
    }
  }
  return cache;
}

void cut(Cache& cache, const Accumulation& start, Index seen) {
  const std::vector<std::int32_t> entries = cache.entries();
  Matrix sums(static_cast<Index>(cache.sums.size()), static_cast<Index>(entries.size()));
  for (Index a = 0; a < sums.rows(); ++a) {
    for (Index n = 0; n < sums.cols(); ++n) {
      sums(a, n) = cache.sums[a][entries[n]];
    }
  }
  for (const std::int32_t evicted : start.evict(sums, seen)) {
    const auto token = static_cast<std::size_t>(entries[evicted]);
    cache.holds[token] = false;
    cache.gone[token] = static_cast<std::int32_t>(seen);
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
      cache.holds[position] = true;
      for (Index a = 0; a < layer.geometry.group(); ++a) {
        const std::vector<double> weights =
            attention_row(layer, kv_head * layer.geometry.group() + a, first_row + step, cache.holds);
        auto& sums = cache.sums[a];
        for (std::size_t i = 0; i < weights.size(); ++i) sums[i] += weights[i];
      }
      if (start.schedule.cuts_after(step)) cut(cache, start, position + 1);
    }
    lifetimes.push_back(std::move(cache.gone));
  }
  return lifetimes;
}

}  // namespace laprox::reference
