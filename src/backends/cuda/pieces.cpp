#include "backends/cuda/pieces.h"

#include <algorithm>
#include <numeric>

namespace laprox::cuda {

namespace {

/// Tokens per piece: short enough that float32 sums over them round little, long enough that there are few.
constexpr Index kPieceTokens = 1024;

/// Appends the ends of the pieces of tokens [bounds.back(), end).
void cut(std::vector<int>& bounds, Index end) {
  while (bounds.back() < end) bounds.push_back(static_cast<int>(std::min(end, bounds.back() + kPieceTokens)));
}

}  // namespace

Pieces::Pieces(const Layer& layer, QueryRange range, Index cells, cudaStream_t stream)
    : layer_(layer), range_(range), stream_(stream) {
  const std::size_t rows = static_cast<std::size_t>(RowLayout(layer, range).rows());
  const std::size_t pieces = static_cast<std::size_t>(layer.tokens / kPieceTokens + cells + 2);
  maximum_ = DeviceBuffer<float>(pieces * rows);
  sum_ = DeviceBuffer<float>(pieces * rows);
  values_ = DeviceBuffer<float>(pieces * rows * static_cast<std::size_t>(layer.value_size));
  order_ = DeviceBuffer<int>(static_cast<std::size_t>(layer.tokens));
  bounds_ = DeviceBuffer<int>(pieces + 1);
  segments_ = DeviceBuffer<int>(static_cast<std::size_t>(cells + 2));
  slots_ = DeviceBuffer<int>(static_cast<std::size_t>(cells));
}

TableShape Pieces::shape(int kv_head) const {
  const RowLayout rows(layer_, range_);
  return {rows.rows(),  rows.resident,     layer_.group,
          range_.count, layer_.value_size, layer_.sinks ? layer_.sinks + kv_head * layer_.group : nullptr};
}

void Pieces::sum_pieces(int kv_head, const float* logits, const std::vector<int>& bounds, const int* order) {
  upload(bounds_.data(), bounds.data(), bounds.size(), stream_);
  piece_sums(layer_, kv_head, shape(kv_head), logits, order, bounds_.data(), static_cast<int>(bounds.size()) - 1,
             {maximum_.data(), sum_.data(), values_.data()}, stream_);
}

void Pieces::exact(int kv_head, const float* logits, OutputRows out) {
  std::vector<int> bounds{0};
  cut(bounds, layer_.tokens);
  sum_pieces(kv_head, logits, bounds, nullptr);
  exact_outputs(shape(kv_head), {maximum_.data(), sum_.data(), values_.data()}, static_cast<int>(bounds.size()) - 1,
                out, stream_);
}

void Pieces::walk(int kv_head, const float* logits, const Ranking& ranking, const std::vector<Index>& counts,
                  bool truncated, OutputRows out, ShareRows shares) {
  const Index decoded = layer_.tokens - layer_.context;
  std::vector<int> order(static_cast<std::size_t>(decoded));
  std::iota(order.begin(), order.end(), layer_.context);
  order.insert(order.end(), ranking.begin(), ranking.end());
  std::vector<int> slots(counts.size());
  std::iota(slots.begin(), slots.end(), 0);
  std::stable_sort(slots.begin(), slots.end(), [&](int a, int b) {
    return counts[static_cast<std::size_t>(a)] < counts[static_cast<std::size_t>(b)];
  });
  std::vector<int> bounds{0}, segments{0};
  for (int slot : slots) {
    cut(bounds, decoded + counts[static_cast<std::size_t>(slot)]);
    segments.push_back(static_cast<int>(bounds.size()) - 1);
  }
  cut(bounds, layer_.tokens);
  segments.push_back(static_cast<int>(bounds.size()) - 1);

  upload(order_.data(), order.data(), order.size(), stream_);
  upload(segments_.data(), segments.data(), segments.size(), stream_);
  upload(slots_.data(), slots.data(), slots.size(), stream_);
  sum_pieces(kv_head, logits, bounds, order_.data());
  deltas(shape(kv_head), {maximum_.data(), sum_.data(), values_.data()},
         {static_cast<int>(slots.size()), segments_.data(), slots_.data()}, truncated, out, shares, stream_);
}

}  // namespace laprox::cuda
