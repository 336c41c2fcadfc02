#include "laprox/layer.h"

#include "base/convert.h"
#include "laprox/error.h"

namespace laprox {

namespace {

/// Rows [first, first + count) of one matrix of `tensor`, in float64.
Matrix rows_of(const Tensor& tensor, Index slice, Index first, Index count) {
  const Index columns = tensor.shape().back(), rows = tensor.shape()[tensor.shape().size() - 2];
  Matrix matrix(count, columns);
  if (tensor.memory()) {
    const bool is_matrix = tensor.shape().size() == 2;
    const StridedArray& whole = tensor.on_device();
    const StridedArray array = is_matrix ? whole.part(0, first, count) : whole.part(0, slice, 1).part(1, first, count);
    std::vector<std::byte> host(static_cast<std::size_t>(array.size() * size_of(array.type)));
    tensor.memory()->download(array, host.data());
    io::convert(host.data(), array.type, matrix.data(), matrix.size());
    return matrix;
  }
  const std::byte* from = tensor.raw() + (slice * rows + first) * columns * size_of(tensor.type());
  io::convert(from, tensor.type(), matrix.data(), matrix.size());
  return matrix;
}

}  // namespace

LayerView::LayerView(const LayerTensors& layer) : layer_(layer) {
  require(layer.query_positions.empty() || layer.query_positions.back() < layer.context_length,
          "a scorer never sees a held-out query");
}

Matrix LayerView::keys(Index kv_head) const { return keys(kv_head, 0, context_length()); }

Matrix LayerView::keys(Index kv_head, Index first, Index count) const {
  return rows_of(layer_.k, kv_head, first, count);
}

Matrix LayerView::values(Index kv_head) const { return rows_of(layer_.v, kv_head, 0, context_length()); }

Matrix LayerView::later_values(Index kv_head) const {
  return rows_of(layer_.v, kv_head, context_length(), layer_.tokens - context_length());
}

Matrix LayerView::queries_of(Index query_head) const { return rows_of(layer_.q, query_head, 0, queries()); }

Matrix LayerView::output_block(Index query_head) const {
  return rows_of(layer_.w_o, 0, query_head * geometry().value_size, geometry().value_size);
}

}  // namespace laprox
