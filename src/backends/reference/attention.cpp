#include "backends/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace laprox::reference {

double logit(const LayerTensors& layer, Index head, Index row, Index token) {
  const auto q = layer.q.matrix<double>(head);
  const auto k = layer.k.matrix<double>(head / layer.geometry.group());
  double product = 0;
  for (Index c = 0; c < layer.geometry.head_size; ++c) product += q(row, c) * k(token, c);
  const double z = layer.attention.scale * product, cap = layer.attention.softcap;
  return cap > 0 ? cap * std::tanh(z / cap) : z;
}

std::vector<double> attention_row(const LayerTensors& layer, Index head, Index row, const std::vector<bool>& visible) {
  const Index position = layer.query_positions[row];
  const Index first = layer.attention.first_visible(position);
  std::vector<double> weights(static_cast<std::size_t>(layer.tokens), 0.0);

  double maximum = -std::numeric_limits<double>::infinity();
  for (Index i = first; i <= position; ++i) {
    if (!visible[i]) continue;
    weights[i] = logit(layer, head, row, i);
    maximum = std::max(maximum, weights[i]);
  }
  const auto& sinks = layer.attention.sinks;
  if (!sinks.empty()) maximum = std::max(maximum, sinks[head]);

  double denominator = sinks.empty() ? 0 : std::exp(sinks[head] - maximum);
  for (Index i = first; i <= position; ++i) {
    if (!visible[i]) continue;
    double& weight = weights[i];
    weight = std::exp(weight - maximum);
    denominator += weight;
  }
  if (denominator > 0) {
    for (double& weight : weights) weight /= denominator;
  }
  return weights;
}

std::vector<double> project(const LayerTensors& layer, Index head, const double* head_vector) {
  const auto w_o = layer.w_o.matrix<double>();
  const Index value_size = layer.geometry.value_size;
  std::vector<double> out(static_cast<std::size_t>(layer.geometry.model_size), 0.0);
  for (Index c = 0; c < value_size; ++c) {
    for (Index column = 0; column < layer.geometry.model_size; ++column) {
      out[column] += head_vector[c] * w_o(head * value_size + c, column);
    }
  }
  return out;
}

}  // namespace laprox::reference
