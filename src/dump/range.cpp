#include "dump/range.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/convert.h"
#include "laprox/error.h"

namespace laprox {

namespace {

/// The largest magnitude, or one that is at least `enough`.
double largest(const Tensor& tensor, double enough) {
  constexpr Index kPiece = 1024;
  std::vector<double> values(static_cast<std::size_t>(std::min(kPiece, tensor.size())));
  double found = 0;
  for (Index first = 0; first < tensor.size() && found < enough; first += kPiece) {
    const Index count = std::min(kPiece, tensor.size() - first);
    io::convert(tensor.raw() + first * size_of(tensor.type()), tensor.type(), values.data(), count);
    for (Index i = 0; i < count; ++i) found = std::max(found, std::abs(values[static_cast<std::size_t>(i)]));
  }
  return found;
}

bool on_device(const LayerTensors& layer) { return layer.v.memory() || layer.w_o.memory(); }

/// The least product whose square has all its digits, and room below it for smaller ones.
double least_product(ElementType computed) { return computed == ElementType::float64 ? 1e-150 : 1e-15; }

/// Whether float32 has no number for any element of a tensor that is stored in float64.
bool vanished(double most, ElementType stored, ElementType computed) {
  return most == 0 && stored == ElementType::float64 && computed != ElementType::float64;
}

}  // namespace

void check_not_too_small(const LayerTensors& layer, const DumpInfo& dump) {
  constexpr double kPlenty = 1e-7, kAll = std::numeric_limits<double>::infinity();
  if (on_device(layer)) return;
  if (largest(layer.v, kPlenty) >= kPlenty && largest(layer.w_o, kPlenty) >= kPlenty) return;
  const ElementType computed = layer.v.type() == ElementType::float64 ? ElementType::float64 : ElementType::float32;
  const double values = largest(layer.v, kAll), projection = largest(layer.w_o, kAll);
  const LayerSummary& stored = dump.layers[static_cast<std::size_t>(layer.layer)];
  if (vanished(values, stored.v_type, computed) || vanished(projection, stored.w_o_type, computed) ||
      (values > 0 && projection > 0 && values * projection < least_product(computed))) {
    throw BackendError(fmt::format(
        "{}: layer {}: values of at most {:.3g} times w_o of at most {:.3g} have squares below what {} "
        "can tell from 0; {}",
        dump.path.string(), layer.layer, values, projection, to_string(computed), advice_on_range(computed)));
  }
}

}  // namespace laprox
