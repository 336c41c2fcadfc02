#include "dump/range.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "base/convert.h"
#include "laprox/error.h"

namespace laprox {

namespace {

/// The largest magnitude, or one that is at least `enough`.
double largest(const Tensor& tensor, double enough) {
  constexpr Index kBlock = 1024;
  std::vector<double> values(static_cast<std::size_t>(std::min(kBlock, tensor.size())));
  double found = 0;
  for (Index first = 0; first < tensor.size() && found < enough; first += kBlock) {
    const Index count = std::min(kBlock, tensor.size() - first);
    io::convert(tensor.raw() + first * size_of(tensor.type()), tensor.type(), values.data(), count);
    for (Index i = 0; i < count; ++i) found = std::max(found, std::abs(values[static_cast<std::size_t>(i)]));
  }
  return found;
}

std::vector<double> row_of(const Tensor& tensor, Index row) {
  const Index size = tensor.shape().back();
  std::vector<double> values(static_cast<std::size_t>(size));
  io::convert(tensor.raw() + row * size * size_of(tensor.type()), tensor.type(), values.data(), size);
  return values;
}

double logit(const LayerTensors& layer, const std::vector<double>& query, Index kv_head, Index token) {
  const std::vector<double> key = row_of(layer.k, kv_head * layer.tokens + token);
  const double cap = layer.attention.softcap;
  const double z = layer.attention.scale * std::inner_product(query.begin(), query.end(), key.begin(), 0.0);
  return cap > 0 ? cap * std::tanh(z / cap) : z;
}

/// The largest weight that a key of one KV head has beside a sink at the last stored queries, or one that is at least
/// `enough`: what an ordinary query gives its own token is.
double largest_weight(const LayerTensors& layer, Index kv_head, double enough) {
  constexpr Index kQueries = 32;
  const Index group = layer.geometry.group(), count = std::min(kQueries, layer.queries());
  double found = 0;
  for (Index n = 0; n < count * group && found < enough; ++n) {
    const Index head = kv_head * group + n % group, row = layer.queries() - 1 - n / group;
    const Index position = layer.query_positions[static_cast<std::size_t>(row)];
    const double sink = layer.attention.sinks[static_cast<std::size_t>(head)];
    const std::vector<double> query = row_of(layer.q, head * layer.queries() + row);
    for (Index i = position; i >= layer.attention.first_visible(position) && found < enough; --i) {
      found = std::max(found, std::exp(std::min(0.0, logit(layer, query, kv_head, i) - sink)));
    }
  }
  return found;
}

bool on_device(const LayerTensors& layer) {
  return layer.q.memory() || layer.k.memory() || layer.v.memory() || layer.w_o.memory();
}

/// The least product whose square has all its digits, and room below it for smaller ones.
double least_product(ElementType computed) { return computed == ElementType::float64 ? 1e-150 : 1e-15; }

/// Whether float32 has no number for any element of a tensor that is stored in float64.
bool vanished(double most, ElementType stored, ElementType computed) {
  return most == 0 && stored == ElementType::float64 && computed != ElementType::float64;
}

/// The largest factors of a layer's outputs.
struct Factors {
  double values, projection, weight = 1;
  Index kv_head = -1;  ///< whose weights are at most `weight`, beside sinks; -1: none has so small ones
  double outputs() const { return values * projection; }
  /// Scores are made of weights alone too.
  bool suffice(double least) const { return weight * std::min(1.0, outputs()) >= least; }
};

/// Values and projection that are at least `plenty` may be larger; weights that are large enough for `least` count
/// as 1. So do those of 0: what float64 has no number for is 0 in every framework.
Factors factors_of(const LayerTensors& layer, double least, double plenty) {
  Factors factors{largest(layer.v, plenty), largest(layer.w_o, plenty)};
  if (layer.attention.sinks.empty() || factors.outputs() == 0) return factors;
  const double enough = least / std::min(1.0, factors.outputs());
  for (Index kv_head = 0; kv_head < layer.geometry.kv_heads && factors.kv_head < 0; ++kv_head) {
    const double weight = largest_weight(layer, kv_head, enough);
    if (weight > 0 && weight < enough) factors.weight = weight, factors.kv_head = kv_head;
  }
  return factors;
}

std::string describe(const Factors& factors) {
  std::string text =
      fmt::format("values of at most {:.3g} times w_o of at most {:.3g}", factors.values, factors.projection);
  if (factors.kv_head < 0) return text;
  return text + fmt::format(" times weights of at most {:.3g} beside the sinks of KV head {}", factors.weight,
                            factors.kv_head);
}

}  // namespace

void check_not_too_small(const LayerTensors& layer, const DumpInfo& dump) {
  constexpr double kPlenty = 0.04, kAll = std::numeric_limits<double>::infinity();
  if (on_device(layer)) return;
  const ElementType computed = layer.v.type() == ElementType::float64 ? ElementType::float64 : ElementType::float32;
  const double least = least_product(computed);
  Factors factors = factors_of(layer, least, kPlenty);
  if (factors.suffice(least)) return;
  factors = factors_of(layer, least, kAll);
  const LayerSummary& stored = dump.layers[static_cast<std::size_t>(layer.layer)];
  const bool gone =
      vanished(factors.values, stored.v_type, computed) || vanished(factors.projection, stored.w_o_type, computed);
  if (!gone && (factors.outputs() == 0 || factors.suffice(least))) return;
  throw BackendError(fmt::format("{}: layer {}: {} have squares below what {} can tell from 0; {}", dump.path.string(),
                                 layer.layer, describe(factors), to_string(computed), advice_on_range(computed)));
}

}  // namespace laprox
