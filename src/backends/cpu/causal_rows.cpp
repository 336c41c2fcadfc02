#include "backends/cpu/causal_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace laprox::cpu {

Index causal_chunk_begin(Index chunk, Index context, Index first) {
  const double share = static_cast<double>(chunk) / static_cast<double>(kCausalChunks);
  // The area up to a query is half its square.
  const double before = static_cast<double>(first) / static_cast<double>(context);
  const double place = std::sqrt(before * before + (1 - before * before) * share);
  const Index query = static_cast<Index>(place * static_cast<double>(context));
  return chunk == kCausalChunks ? context : std::max(first, query / kQueryBlock * kQueryBlock);
}

CausalRows::CausalRows(const LayerTensors& layer, Index head, const Panels& keys)
    : layer_(layer),
      head_(head),
      keys_(keys),
      scores_(kQueryBlock * padded(layer.context_length)),
      queries_(kQueryBlock * layer.geometry.head_size) {}

void CausalRows::compute(Index first_query, Index last_query, Index alignment) {
  const Index size = layer_.geometry.head_size;
  rows_ = last_query - first_query;
  first_key_ = layer_.attention.first_visible(first_query) / alignment * alignment;
  const Index first_panel = first_key_ / kPanel, last_panel = padded(last_query) / kPanel;
  stride_ = (last_panel - first_panel) * kPanel;
  scale_queries(first_query);
  multiply(rows_, size, {queries_.data(), size, 1}, keys_, first_panel, last_panel, scores_.data(), stride_);
  if (layer_.attention.softcap > 0) apply_softcap(scores_.data(), rows_ * stride_, layer_.attention.softcap);
  for (Index row = 0; row < rows_; ++row) exponentials(row, first_query + row);
}

void CausalRows::scale_queries(Index first_query) {
  const Index size = layer_.geometry.head_size;
  const Index row = first_query - (layer_.context_length - layer_.queries());
  const float* q = layer_.q.data<float>() + (head_ * layer_.queries() + row) * size;
  const float scale = static_cast<float>(layer_.attention.scale);
  for (Index i = 0; i < rows_ * size; ++i) queries_[i] = scale * q[i];
}

/// Turns one row of logits into exp(logit - largest), 0 where unseen.
void CausalRows::exponentials(Index at, Index position) {
  const float hidden = -std::numeric_limits<float>::infinity();
  float* row = this->row(at);
  std::fill(row, row + layer_.attention.first_visible(position) - first_key_, hidden);
  std::fill(row + (position + 1 - first_key_), row + stride_, hidden);
  Lanes maxima = broadcast(hidden);
  for (Index i = 0; i < stride_; i += kLanes) maxima = max(maxima, load(row + i));
  const auto& sinks = layer_.attention.sinks;
  const float sink = sinks.empty() ? hidden : static_cast<float>(sinks[head_]);
  largest_[at] = std::max(maximum(maxima), sink);
  Lanes total{};
  for (Index i = 0; i < stride_; i += kLanes) {
    const Lanes e = exp_nonpositive(load(row + i) - largest_[at]);
    store(row + i, e);
    total += e;
  }
  of_sink_[at] = std::exp(sink - largest_[at]);
  inverse_[at] = 1.0F / (sum(total) + of_sink_[at]);
}

void CausalRows::add_columns(double* sums) const {
  for (Index i = 0; i < stride_; i += kLanes) {
    Lanes columns{};
    for (Index row = 0; row < rows_; ++row) columns += load(scores_.data() + row * stride_ + i) * inverse_[row];
    for (int lane = 0; lane < kLanes; ++lane) sums[first_key_ + i + lane] += columns[lane];
  }
}

}  // namespace laprox::cpu
