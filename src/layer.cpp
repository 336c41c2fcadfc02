#include "laprox/layer.h"

#include "laprox/error.h"

namespace laprox {

namespace {

Matrix context_rows(const Tensor& tensor, Index kv_head, Index context_length) {
  if (tensor.type() == ElementType::float64) return tensor.matrix<double>(kv_head).topRows(context_length);
  return tensor.matrix<float>(kv_head).topRows(context_length).cast<double>();
}

}  // namespace

LayerView::LayerView(const LayerTensors& layer) : layer_(layer) {
  require(layer.query_positions.empty() || layer.query_positions.back() < layer.context_length,
          "a scorer never sees a held-out query");
}

Matrix LayerView::keys(Index kv_head) const { return context_rows(layer_.k, kv_head, context_length()); }

Matrix LayerView::output_block(Index query_head) const {
  const Index size = geometry().value_size, first = query_head * size;
  if (layer_.w_o.type() == ElementType::float64) return layer_.w_o.matrix<double>().middleRows(first, size);
  return layer_.w_o.matrix<float>().middleRows(first, size).cast<double>();
}

Matrix LayerView::values(Index kv_head) const { return context_rows(layer_.v, kv_head, context_length()); }

}  // namespace laprox
