#include "backends/cpu/logits.h"

#include <limits>

#include "backends/softcap.h"

namespace laprox::cpu {

QueryRows::QueryRows(const LayerTensors& layer, Index first_head, Index heads, Index first_query, Index queries,
                     Index head_stride)
    : layer_(layer),
      kv_head_(first_head / layer.geometry.group()),
      heads_(heads),
      queries_(queries),
      head_stride_(head_stride),
      stride_(padded(heads * head_stride)),
      q_(layer.geometry.head_size, stride_),
      positions_(stride_) {
  const Index size = layer.geometry.head_size;
  // The scale goes into q once instead of into every logit.
  const float scale = static_cast<float>(layer.attention.scale);
  Buffer<float> rows(stride_ * size);
  std::fill_n(rows.data(), rows.size(), 0.0F);
  const Index last_query = first_query + queries - 1;
  for (Index r = 0; r < stride_; ++r) {
    const Index query = first_query + r % head_stride;
    const bool real = r < heads * head_stride && query <= last_query;
    positions_[r] = static_cast<std::int32_t>(layer.query_positions[real ? query : last_query]);
    if (real) {
      const float* q = layer.q.data<float>() + ((first_head + r / head_stride) * layer.queries() + query) * size;
      std::copy_n(q, size, rows.data() + r * size);
    }
  }
  for (Index p = 0; p < q_.count(); ++p) q_.set_panel_transposed(p, rows.data(), size, scale);
  first_position_ = layer.query_positions[first_query];
  last_position_ = layer.query_positions[last_query];
}

void QueryRows::logits(Index first, Index last, float* out) const {
  const Index size = layer_.geometry.head_size;
  const float* k = layer_.k.data<float>() + (kv_head_ * layer_.tokens + first) * size;
  multiply(last - first, size, {k, size, 1}, q_, 0, q_.count(), out, stride_);
  if (layer_.attention.softcap > 0) apply_softcap(out, (last - first) * stride_, layer_.attention.softcap);
  const bool all_visible = last - 1 <= first_position_ && first >= layer_.attention.first_visible(last_position_);
  if (!all_visible) mask(first, last, out);
}

void QueryRows::mask(Index first, Index last, float* out) const {
  const std::int32_t window = layer_.attention.sliding_window > 0 && layer_.attention.sliding_window < layer_.tokens
                                  ? static_cast<std::int32_t>(layer_.attention.sliding_window)
                                  : static_cast<std::int32_t>(layer_.tokens);
  const Lanes hidden = broadcast(-std::numeric_limits<float>::infinity());
  for (Index token = first; token < last; ++token) {
    float* row = out + (token - first) * stride_;
    const std::int32_t i = static_cast<std::int32_t>(token);
    for (Index r = 0; r < stride_; r += kLanes) {
      IntLanes position;
      std::memcpy(&position, positions_.data() + r, sizeof position);
      store(row + r, select((position >= i) & (position - window < i), load(row + r), hidden));
    }
  }
}

void apply_softcap(float* logits, Index count, double cap) {
  const float up = softcap_in_float32(cap), down = 1 / up;
  for (Index i = 0; i < count; i += kLanes) store(logits + i, up * tanh(load(logits + i) * down));
}

}  // namespace laprox::cpu
