#include "replay/held_layer.h"

#include <cstring>
#include <numeric>

#include "dump/queries.h"
#include "laprox/error.h"

namespace laprox {

namespace {

/// Elements [first, first + count) of the first dimension; `tensor` outlives the result.
Tensor lend(const Tensor& tensor, Index first, Index count) {
  std::vector<Index> shape = tensor.shape();
  const Index bytes = tensor.bytes() / shape[0];
  shape[0] = count;
  return Tensor::borrow(tensor.type(), std::move(shape), tensor.raw() + first * bytes, nullptr);
}

Tensor lend(const Tensor& tensor) { return lend(tensor, 0, tensor.shape()[0]); }

LayerTensors heads_of(const LayerTensors& layer, Index first, Index count) {
  const Index group = layer.geometry.group(), first_query = first * group, queries = count * group;
  const Index size = layer.geometry.value_size;
  LayerTensors part;
  part.layer = layer.layer;
  part.first_kv_head = first;
  part.geometry = layer.geometry;
  part.geometry.kv_heads = count, part.geometry.query_heads = queries;
  part.attention = layer.attention;
  if (!layer.attention.sinks.empty()) {
    const auto sink = layer.attention.sinks.begin() + first_query;
    part.attention.sinks.assign(sink, sink + queries);
  }
  part.context_length = layer.context_length, part.tokens = layer.tokens;
  part.query_positions = layer.query_positions;
  part.q = lend(layer.q, first_query, queries);
  part.k = lend(layer.k, first, count), part.v = lend(layer.v, first, count);
  part.w_o = lend(layer.w_o, first_query * size, queries * size);
  part.bias = layer.bias;
  part.residual_norms = layer.residual_norms;
  return part;
}

}  // namespace

/// The backend's primitives on what is held, but for those of single tokens, which are picked from the whole layer's.
class HeldLayer::Kernels : public ScoringKernels {
 public:
  Kernels(HeldLayer& layer, std::unique_ptr<ScoringKernels> own) : layer_(layer), own_(std::move(own)) {}

  void expect_far_energies(Index distance) override { own_->expect_far_energies(distance); }
  void visit_heads(Index window, const HeadVisitor& visit) override { own_->visit_heads(window, visit); }
  int threads() const override { return own_->threads(); }

 protected:
  WindowStatistics compute_window_statistics(Index window) override { return own_->window_statistics(window); }
  Matrix compute_window_products(Index window) override { return own_->window_products(window); }
  Matrix compute_column_sums() override { return own_->column_sums(); }
  Matrix compute_value_norms() override { return pick(layer_.whole().value_norms()); }
  Matrix compute_value_l1_norms() override { return pick(layer_.whole().value_l1_norms()); }
  Matrix compute_value_products() override { return pick(layer_.whole().value_products()); }
  Matrix compute_removal_energies(Index window, OverQueries over, bool joint) override {
    return own_->removal_energies(window, over, joint);
  }
  Matrix compute_far_energies(Index distance, Index queries) override { return own_->far_energies(distance, queries); }

 private:
  /// The held entries' columns; rows of one KV head are neighbours.
  Matrix pick(const Matrix& whole) const {
    const auto heads = static_cast<Index>(layer_.tokens_.size()), per_head = whole.rows() / heads;
    Matrix held(whole.rows(), static_cast<Index>(layer_.tokens_[0].size()));
    for (Index row = 0; row < held.rows(); ++row) {
      const auto& tokens = layer_.tokens_[row / per_head];
      for (Index n = 0; n < held.cols(); ++n) held(row, n) = whole(row, tokens[n]);
    }
    return held;
  }

  HeldLayer& layer_;
  std::unique_ptr<ScoringKernels> own_;
};

HeldLayer::HeldLayer(const LayerTensors& layer, Index first, Index count, const Backend& backend)
    : layer_(heads_of(layer, first, count)), backend_(backend) {}

HeldLayer::~HeldLayer() = default;

ScoringKernels& HeldLayer::whole() {
  if (!all_kernels_) {
    all_.layer = layer_.layer;
    all_.geometry = layer_.geometry;
    all_.attention = layer_.attention;
    all_.context_length = all_.tokens = layer_.tokens;
    all_.k = lend(layer_.k), all_.v = lend(layer_.v), all_.w_o = lend(layer_.w_o);
    set_queries(all_, copy_queries(layer_, 0, 0));
    all_kernels_ = backend_.scoring(all_);
  }
  return *all_kernels_;
}

void HeldLayer::gather(const Tensor& from, Tensor& to, std::span<const std::vector<std::int32_t>> tokens) const {
  const Index entries = static_cast<Index>(tokens[0].size()), size = from.shape()[2], row = size * size_of(from.type());
  const bool fits = tokens_.size() == tokens.size() && tokens_[0].size() == tokens[0].size();
  if (!fits) to = Tensor(from.type(), {static_cast<Index>(tokens.size()), entries, size});
  for (std::size_t head = 0; head < tokens.size(); ++head) {
    const auto at = static_cast<Index>(head);
    for (Index n = 0; n < entries; ++n) {
      const auto place = static_cast<std::size_t>(n);
      if (fits && tokens_[head][place] == tokens[head][place]) continue;  // as at the cut before
      std::memcpy(to.raw() + (at * entries + n) * row, from.raw() + (at * layer_.tokens + tokens[head][place]) * row,
                  static_cast<std::size_t>(row));
    }
  }
}

void HeldLayer::hold(std::span<const std::vector<std::int32_t>> tokens, Index position, Index window) {
  if (tokens_.empty()) {
    held_.layer = layer_.layer, held_.first_kv_head = layer_.first_kv_head;
    held_.geometry = layer_.geometry;
    held_.attention = layer_.attention;
    held_.attention.rope_inv_freq.clear();  // the distance between entries is no longer that of their places
    held_.attention.sliding_window = 0;     // what it hides from these queries has left by age
    held_.w_o = lend(layer_.w_o);
    held_.bias = layer_.bias;
  }
  gather(layer_.k, held_.k, tokens);
  gather(layer_.v, held_.v, tokens);
  tokens_.assign(tokens.begin(), tokens.end());
  const Index entries = static_cast<Index>(tokens[0].size());
  held_.context_length = held_.tokens = entries;
  const Index after = position + 1 - layer_.tokens + layer_.queries();  // the row behind the last query
  require(after >= window, "the layer was read with the queries that its scorers need");
  QueryBlock queries = copy_queries(layer_, after - window, window);
  std::iota(queries.positions.begin(), queries.positions.end(), entries - window);
  set_queries(held_, std::move(queries));
}

std::unique_ptr<ScoringKernels> HeldLayer::kernels() {
  return std::make_unique<Kernels>(*this, backend_.scoring(held_));
}

}  // namespace laprox
