#include "laprox/array_source.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/convert.h"
#include "base/parallel.h"
#include "base/text.h"
#include "dump/shared_contents.h"
#include "laprox/error.h"

namespace laprox {

namespace {

/// Rows of q that are checked at a time where they are not kept: a few MB.
constexpr Index kCheckedElements = Index{1} << 22;

Tensor convert(const ArrayView& array, ElementType type) {
  Tensor target(type, array.shape);
  if (type == ElementType::float64) {
    io::convert(array.data, array.type, target.data<double>(), target.size());
  } else {
    io::convert(array.data, array.type, target.data<float>(), target.size());
  }
  return target;
}

Tensor borrow_or_convert(const ArrayView& array, ElementType type) {
  if (array.type != type) return convert(array, type);
  return Tensor::borrow(type, array.shape, array.data, array.owner);
}

Tensor borrow_on_device(const ArrayView& array, ElementType type, const std::string& object) {
  if (array.type != type) {
    throw UsageError(fmt::format("{}: {} in the memory of {}, where the backend computes in {}; convert it there first",
                                 object, to_string(array.type), array.memory->name(), to_string(type)));
  }
  return Tensor::borrow({array.type, array.shape, array.strides, array.data}, array.memory, array.owner);
}

/// One element of a tensor, by its number in row-major order.
double element(const Tensor& tensor, Index number) {
  double value = 0;
  if (!tensor.memory()) {
    io::convert(tensor.raw() + number * size_of(tensor.type()), tensor.type(), &value, 1);
    return value;
  }
  StridedArray one = tensor.on_device();
  const std::vector<Index> at = indices_of(number, one.shape);
  for (std::size_t d = 0; d < at.size(); ++d) one = one.part(d, at[d], 1);
  std::byte host[8];
  tensor.memory()->download(one, host);
  io::convert(host, one.type, &value, 1);
  return value;
}

}  // namespace

std::string_view to_string(LayerArray array) {
  switch (array) {
    case LayerArray::q:
      return "q";
    case LayerArray::k:
      return "k";
    case LayerArray::v:
      return "v";
    case LayerArray::w_o:
      return "w_o";
    case LayerArray::b_o:
      return "b_o";
    case LayerArray::residual_norms:
      return "residual_norms";
    case LayerArray::output:
      return "output";
  }
  throw Bug("unknown array of a layer");
}

ArraySource::ArraySource(DumpInfo info, Fetch fetch, int threads)
    : info_(std::move(info)),
      shared_(std::make_shared<SharedContents>()),
      fetch_(std::move(fetch)),
      threads_(thread_count(threads)) {
  require(!info_.layers.empty(), "a source has at least one layer");
}

LayerTensors ArraySource::read_layer(Index layer, DumpInfo::Rows rows, ElementType type) const {
  const LayerSummary& summary = info_.layers.at(static_cast<std::size_t>(layer));
  LayerTensors tensors;
  tensors.layer = layer;
  tensors.geometry = summary.geometry;
  tensors.attention = summary.attention;
  tensors.context_length = info_.context_length;
  tensors.tokens = info_.tokens;
  tensors.query_positions.assign(info_.query_positions.begin() + rows.first, info_.query_positions.begin() + rows.last);
  tensors.q = read(layer, LayerArray::q, rows, type);
  tensors.k = read(layer, LayerArray::k, rows, type);
  tensors.v = read(layer, LayerArray::v, rows, type);
  tensors.w_o = read(layer, LayerArray::w_o, rows, type);
  if (summary.has_bias) {
    const Tensor bias = read(layer, LayerArray::b_o, rows, ElementType::float64);
    tensors.bias.assign(bias.data<double>(), bias.data<double>() + bias.size());
  }
  if (summary.has_residual_norms) {
    const Tensor norms = read(layer, LayerArray::residual_norms, rows, ElementType::float64);
    tensors.residual_norms.assign(norms.data<double>(), norms.data<double>() + norms.size());
  }
  shared_->check(tensors, info_, fmt::format("layer {}, ", layer));
  return tensors;
}

void ArraySource::check_other_queries(Index layer, DumpInfo::Rows read_rows) const {
  const LayerSummary& summary = info_.layers.at(static_cast<std::size_t>(layer));
  const Index block =
      std::max<Index>(1, kCheckedElements / (summary.geometry.query_heads * summary.geometry.head_size));
  const Index stored = static_cast<Index>(info_.query_positions.size());
  for (const auto& [begin, end] : {std::pair{Index{0}, read_rows.first}, std::pair{read_rows.last, stored}}) {
    for (Index first = begin; first < end; first += block) {
      read(layer, LayerArray::q, {first, std::min(end, first + block)}, summary.q_type);
    }
  }
}

std::optional<Matrix> ArraySource::read_output(Index layer) const {
  if (!info_.layers.at(static_cast<std::size_t>(layer)).has_output) return std::nullopt;
  const Tensor output = read(layer, LayerArray::output, {}, ElementType::float64);
  return output.matrix<double>();
}

/// Half types that stay as they are need no conversion; everything else becomes `type`.
Tensor ArraySource::read(Index layer, LayerArray array, DumpInfo::Rows rows, ElementType type) const {
  const std::vector<Index> shape = expected_shape(layer, array, rows);
  Index size = 1;
  for (Index extent : shape) size *= extent;
  if (size == 0) return Tensor(type, shape);
  const ArrayView found = fetch_(layer, array, rows);
  const std::string object = fmt::format("layer {}, {}", layer, to_string(array));
  if (found.shape != shape) {
    throw DumpError(info_.path.string(), object, "shape " + describe(shape), "shape " + describe(found.shape));
  }
  Tensor tensor = found.memory ? borrow_on_device(found, type, object) : borrow_or_convert(found, type);
  const auto bad = tensor.memory() ? tensor.memory()->first_non_finite(tensor.on_device())
                                   : io::first_non_finite(tensor.raw(), type, tensor.size(), threads_);
  if (!bad) return tensor;
  const double value = element(tensor, *bad);
  const bool narrowed = found.type == ElementType::float64 && type == ElementType::float32;
  std::string where = describe(indices_of(*bad, shape));
  if (array == LayerArray::q && rows.first > 0) where += fmt::format(" of the rows from {} on", rows.first);
  throw DumpError(info_.path.string(), object, narrowed ? "finite values within the range of float32" : "finite values",
                  fmt::format("{} at {}", value, where), narrowed ? "the reference backend computes in float64" : "");
}

std::vector<Index> ArraySource::expected_shape(Index layer, LayerArray array, DumpInfo::Rows rows) const {
  const LayerGeometry& g = info_.layers.at(static_cast<std::size_t>(layer)).geometry;
  switch (array) {
    case LayerArray::q:
      return {g.query_heads, rows.count(), g.head_size};
    case LayerArray::k:
      return {g.kv_heads, info_.tokens, g.head_size};
    case LayerArray::v:
      return {g.kv_heads, info_.tokens, g.value_size};
    case LayerArray::w_o:
      return {g.query_heads * g.value_size, g.model_size};
    case LayerArray::b_o:
      return {g.model_size};
    case LayerArray::residual_norms:
      return {rows.count()};
    case LayerArray::output:
      return {static_cast<Index>(info_.output_positions.size()), g.model_size};
  }
  throw Bug("unknown array of a layer");
}

}  // namespace laprox
