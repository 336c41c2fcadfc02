#include "backends/cpu/accumulation.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/cpu/logits.h"
#include "backends/cpu/product.h"
#include "base/parallel.h"

namespace laprox::cpu {

namespace {

constexpr float kUnseen = -std::numeric_limits<float>::infinity();
/// Steps whose logits are one product: enough rows for it, and few entries that come and go meanwhile.
constexpr Index kSteps = 32;
/// Vectors that are summed in float32 before they join a float64 sum.
constexpr Index kChain = 32;

/// exp(logit - maximum) in place, over whole vectors; returns their sum, and the largest logit.
std::pair<double, float> exponentiate(float* logits, Index count) {
  Lanes largest = broadcast(kUnseen);
  for (Index i = 0; i < count; i += kLanes) largest = max(largest, load(logits + i));
  const float top = maximum(largest);
  double total = 0;
  for (Index chain = 0; chain < count; chain += kChain * kLanes) {
    Lanes part{};
    for (Index i = chain; i < std::min(count, chain + kChain * kLanes); i += kLanes) {
      const Lanes e = exp_nonpositive(load(logits + i) - top);
      store(logits + i, e);
      part += e;
    }
    total += sum(part);
  }
  return {total, top};
}

/// One KV head's cache while the model decodes. Entries stand in slots, in the order of their positions; within a block
/// of steps those that leave make holes.
class Cache {
 public:
  Cache(const LayerTensors& layer, const Accumulation& start, Index kv_head)
      : layer_(layer),
        start_(start),
        kv_head_(kv_head),
        group_(layer.geometry.group()),
        tokens_(start.held[kv_head]),
        sums_(static_cast<std::size_t>(group_)),
        gone_(lifetimes_after_prompt(tokens_, layer.context_length, layer.tokens, layer.attention.sliding_window)) {
    for (const std::int32_t token : tokens_) {
      for (Index a = 0; a < group_; ++a) {
        sums_[a].push_back(start.sums(kv_head * group_ + a, token));
      }
    }
  }

  Lifetimes run() {
    const Index steps = layer_.tokens - layer_.context_length;
    for (Index first = 0; first < steps; first += kSteps) run_block(first, std::min(kSteps, steps - first));
    return std::move(gone_);
  }

 private:
  void run_block(Index first, Index steps) {
    const Index before = slots();
    for (Index step = 0; step < steps; ++step) {
      tokens_.push_back(static_cast<std::int32_t>(layer_.context_length + first + step));
      for (auto& sums : sums_) sums.push_back(0);
    }
    compute_logits(first, steps);
    for (Index slot = 0; slot < slots(); ++slot) hide(slot, first, steps);
    for (Index step = 0; step < steps; ++step) {
      for (Index a = 0; a < group_; ++a) add_attention(step, a, before + step + 1);
      const Index seen = position_of(first + step + 1);
      if (start_.schedule.cuts_after(first + step) && seen < layer_.tokens) {
        for (const Index slot : cut(before + step + 1, seen)) hide(slot, first, steps);
      }
    }
    close_holes(position_of(first + steps));
  }

  Index position_of(Index step) const { return layer_.context_length + step; }

  /// Takes a slot away from the queries of the block that no longer find it.
  void hide(Index slot, Index first, Index steps) {
    for (Index step = std::max<Index>(0, gone_[tokens_[slot]] - position_of(first)); step < steps; ++step) {
      for (Index a = 0; a < group_; ++a) logits(step, a)[slot] = kUnseen;
    }
  }

  Index slots() const { return static_cast<Index>(tokens_.size()); }
  float* logits(Index step, Index a) { return logits_.data() + (step * group_ + a) * stride_; }

  /// logits_ [steps * group, stride]: of every query of the block against every slot.
  void compute_logits(Index first, Index steps) {
    const Index size = layer_.geometry.head_size, rows = steps * group_;
    Buffer<float> q(rows * size);
    const Index first_row = layer_.queries() - (layer_.tokens - layer_.context_length) + first;
    const auto scale = static_cast<float>(layer_.attention.scale);
    for (Index row = 0; row < rows; ++row) {
      const Index head = kv_head_ * group_ + row % group_;
      const float* from = layer_.q.data<float>() + (head * layer_.queries() + first_row + row / group_) * size;
      std::transform(from, from + size, q.data() + row * size, [&](float value) { return scale * value; });
    }
    stride_ = padded(slots());
    Panels keys(size, kPanel);
    Buffer<float> gathered(kPanel * size);
    float* out = logits_.at_least(rows * stride_);
    for (Index slot = 0; slot < slots(); slot += kPanel) {
      for (Index n = 0; n < kPanel; ++n) {
        const Index token = tokens_[static_cast<std::size_t>(std::min(slot + n, slots() - 1))];
        std::copy_n(layer_.k.data<float>() + (kv_head_ * layer_.tokens + token) * size, size,
                    gathered.data() + n * size);
      }
      keys.set_panel_transposed(0, gathered.data(), size, 1.0F);
      multiply(rows, size, {q.data(), size, 1}, keys, 0, 1, out + slot, stride_);
    }
    if (layer_.attention.softcap > 0) apply_softcap(out, rows * stride_, layer_.attention.softcap);
  }

  /// Adds one query's weights over the first `seen` slots to their sums.
  void add_attention(Index step, Index a, Index seen) {
    float* row = logits(step, a);
    const Index width = padded(seen);
    std::fill(row + seen, row + width, kUnseen);
    const auto [total, top] = exponentiate(row, width);
    const auto& sinks = layer_.attention.sinks;
    const double sink = sinks.empty() ? 0 : std::exp(sinks[kv_head_ * group_ + a] - top);
    const double factor = 1 / (total + sink);
    double* sums = sums_[a].data();
    for (Index slot = 0; slot < seen; ++slot) sums[slot] += factor * row[slot];
  }

  /// Once `seen_tokens` have been processed: cuts what the next query would find. Returns the slots that it evicts.
  std::vector<Index> cut(Index seen_slots, Index seen_tokens) {
    std::vector<Index> entries, evicted;
    for (Index slot = 0; slot < seen_slots; ++slot) {
      if (gone_[tokens_[slot]] > seen_tokens) entries.push_back(slot);
    }
    Matrix sums(group_, static_cast<Index>(entries.size()));
    for (Index a = 0; a < group_; ++a) {
      for (Index n = 0; n < sums.cols(); ++n) {
        sums(a, n) = sums_[a][entries[n]];
      }
    }
    for (const std::int32_t entry : start_.evict(sums, seen_tokens)) {
      evicted.push_back(entries[entry]);
      gone_[tokens_[entries[entry]]] = static_cast<std::int32_t>(seen_tokens);
    }
    return evicted;
  }

  /// Leaves the slots that the query at `position` finds.
  void close_holes(Index position) {
    Index next = 0;
    for (Index slot = 0; slot < slots(); ++slot) {
      if (gone_[tokens_[slot]] <= position) continue;
      tokens_[next] = tokens_[slot];
      for (auto& sums : sums_) sums[next] = sums[slot];
      ++next;
    }
    tokens_.resize(static_cast<std::size_t>(next));
    for (auto& sums : sums_) sums.resize(static_cast<std::size_t>(next));
  }

  const LayerTensors& layer_;
  const Accumulation& start_;
  Index kv_head_, group_;
  std::vector<std::int32_t> tokens_;       ///< [slot]
  std::vector<std::vector<double>> sums_;  ///< [group][slot]
  Lifetimes gone_;                         ///< [T]
  Index stride_ = 0;
  Buffer<float> logits_;
};

}  // namespace

std::vector<Lifetimes> accumulate(const LayerTensors& layer, const Accumulation& start, int threads) {
  std::vector<Lifetimes> lifetimes(static_cast<std::size_t>(layer.geometry.kv_heads));
  parallel_for(threads, layer.geometry.kv_heads,
               [&](Index kv_head) { lifetimes[kv_head] = Cache(layer, start, kv_head).run(); });
  return lifetimes;
}

}  // namespace laprox::cpu
