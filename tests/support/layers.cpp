#include "support/layers.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "replay/selection.h"

namespace laprox::testing {

namespace {

Tensor random_tensor(std::vector<Index> shape, double deviation, std::mt19937& generator) {
  Tensor tensor(ElementType::float64, std::move(shape));
  std::normal_distribution<double> normal(0, deviation);
  double* values = tensor.data<double>();
  // Through float32, so that both backends read the same numbers.
  for (Index i = 0; i < tensor.size(); ++i) values[i] = static_cast<float>(normal(generator));
  return tensor;
}

Tensor converted(const Tensor& source, ElementType type) {
  Tensor target(type, source.shape());
  for (Index i = 0; i < source.size(); ++i) {
    if (type == ElementType::float64) {
      target.data<double>()[i] = source.data<double>()[i];
    } else {
      target.data<float>()[i] = static_cast<float>(source.data<double>()[i]);
    }
  }
  return target;
}

/// The hash of the fixture: see the policies' specification.
double fixture_value(std::uint32_t kind, std::uint32_t layer, std::uint32_t head, std::uint32_t row,
                     std::uint32_t column) {
  std::uint32_t x = (((kind * 31 + layer) * 31 + head) * 31 + row) * 31 + column;
  x ^= x >> 16;
  x *= 0x85ebca6bU;
  x ^= x >> 13;
  x *= 0xc2b2ae35U;
  x ^= x >> 16;
  return (static_cast<double>(x % 41) - 20) / 10;
}

Tensor fixture_tensor(std::uint32_t kind, Index layer, std::vector<Index> shape) {
  Tensor tensor(ElementType::float64, shape);
  double* out = tensor.data<double>();
  for (Index head = 0; head < shape[0]; ++head) {
    for (Index row = 0; row < shape[1]; ++row) {
      for (Index column = 0; column < shape[2]; ++column) {
        *out++ = fixture_value(kind, static_cast<std::uint32_t>(layer), static_cast<std::uint32_t>(head),
                               static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(column));
      }
    }
  }
  return tensor;
}

}  // namespace

LayerTensors random_layer(const LayerShape& shape, unsigned seed) {
  std::mt19937 generator(seed);
  const LayerGeometry& g = shape.geometry;
  LayerTensors layer;
  layer.geometry = g;
  layer.attention = shape.attention;
  for (Index j = 0; shape.rope && j < g.head_size / 2; ++j) layer.attention.rope_inv_freq.push_back(std::pow(0.3, j));
  layer.context_length = shape.context;
  layer.tokens = shape.context + shape.decoded;
  layer.query_positions.resize(static_cast<std::size_t>(layer.tokens));
  std::iota(layer.query_positions.begin(), layer.query_positions.end(), 0);
  layer.q = random_tensor({g.query_heads, layer.tokens, g.head_size}, shape.spread, generator);
  layer.k = random_tensor({g.kv_heads, layer.tokens, g.head_size}, 1, generator);
  layer.v = random_tensor({g.kv_heads, layer.tokens, g.value_size}, 1, generator);
  layer.w_o = random_tensor({g.query_heads * g.value_size, g.model_size}, 0.3, generator);
  std::normal_distribution<double> normal;
  for (Index c = 0; shape.bias && c < g.model_size; ++c) layer.bias.push_back(normal(generator));
  std::uniform_real_distribution<double> norms(2, 6);
  for (Index t = 0; shape.residual && t < layer.tokens; ++t) layer.residual_norms.push_back(norms(generator));
  return layer;
}

LayerTensors with_queries(const LayerTensors& layer, Index begin, Index end, ElementType type) {
  LayerTensors part;
  part.layer = layer.layer;
  part.geometry = layer.geometry;
  part.attention = layer.attention;
  part.context_length = layer.context_length;
  part.tokens = layer.tokens;
  part.bias = layer.bias;
  part.k = converted(layer.k, type);
  part.v = converted(layer.v, type);
  part.w_o = converted(layer.w_o, type);
  Tensor q(ElementType::float64, {layer.geometry.query_heads, end - begin, layer.geometry.head_size});
  double* out = q.data<double>();
  for (Index head = 0; head < layer.geometry.query_heads; ++head) {
    const auto rows = layer.q.matrix<double>(head);
    for (Index row = begin; row < end; ++row) out = std::copy_n(rows.row(row).data(), rows.cols(), out);
  }
  for (Index position = begin; position < end; ++position) part.query_positions.push_back(position);
  if (!layer.residual_norms.empty())
    part.residual_norms.assign(layer.residual_norms.begin() + begin, layer.residual_norms.begin() + end);
  part.q = converted(q, type);
  return part;
}

std::vector<LayerShape> varied_shapes() {
  return {
      {},
      {.geometry = {3, 1, 16, 4, 9}, .context = 40, .decoded = 3, .bias = true},
      {.geometry = {8, 1, 5, 7, 33}, .context = 65, .decoded = 9, .attention = {.scale = 0.5, .softcap = 2.0}},
      {.geometry = {6, 6, 8, 8, 12},
       .context = 50,
       .decoded = 8,
       .attention = {.scale = 0.4, .sliding_window = 13},
       .spread = 2},
      {.geometry = {4, 2, 33, 65, 20},
       .context = 37,
       .decoded = 4,
       .attention = {.scale = 0.2, .softcap = 5, .sliding_window = 30, .sinks = {1.0, -2.0, 3.0, 0.0}},
       .bias = true},
      {.geometry = {2, 1, 4, 4, 4}, .context = 1, .decoded = 2},
      {.geometry = {2, 2, 64, 32, 128}, .context = 300, .decoded = 40, .attention = {.scale = 0.125}, .spread = 4},
  };
}

LayerTensors fixture_layer(Index index, ElementType type) {
  LayerTensors layer;
  layer.layer = index;
  layer.geometry = {4, 2, 2, 2, 4};
  layer.attention.scale = 1 / std::sqrt(2.0);
  layer.context_length = layer.tokens = 6;
  layer.query_positions = {0, 1, 2, 3, 4, 5};
  layer.residual_norms = index == 0 ? std::vector<double>{1, 1, 1, 1, 3, 4} : std::vector<double>{2, 2, 2, 2, 6, 8};
  layer.q = converted(fixture_tensor(1, index, {4, 6, 2}), type);
  layer.k = converted(fixture_tensor(2, index, {2, 6, 2}), type);
  layer.v = converted(fixture_tensor(3, index, {2, 6, 2}), type);
  const Tensor blocks = fixture_tensor(4, index, {4, 2, 4});
  Tensor w_o(ElementType::float64, {8, 4});
  std::copy_n(blocks.data<double>(), 32, w_o.data<double>());
  layer.w_o = converted(w_o, type);
  return layer;
}

LayerTensors rotated_fixture_layer(Index index, ElementType type) {
  LayerTensors layer = fixture_layer(index, type);
  layer.attention.rope_inv_freq = {1.0};
  Tensor q = fixture_tensor(1, index, {4, 6, 2});
  for (Index row = 0; row < 24; ++row) {
    double* pair = q.data<double>() + 2 * row;
    const double angle = static_cast<double>(row % 6), x = pair[0], y = pair[1];
    pair[0] = x * std::cos(angle) - y * std::sin(angle);
    pair[1] = y * std::cos(angle) + x * std::sin(angle);
  }
  layer.q = converted(q, type);
  return layer;
}

std::vector<int> Kept::tokens(std::size_t budget, std::size_t layer, std::size_t head) const {
  const Ranking& ranking = rankings(budget)[layer][head];
  std::vector<int> kept(ranking.begin(), ranking.begin() + counts[budget][layer][head]);
  std::sort(kept.begin(), kept.end());
  return kept;
}

Kept keep(const Policy& policy, const std::vector<LayerTensors>& prompts, const std::vector<Index>& budgets,
          const Backend& backend) {
  Index heads = 0;
  for (const LayerTensors& layer : prompts) heads += layer.geometry.kv_heads;
  std::vector<Budget> requests;
  for (Index budget : budgets) requests.emplace_back(budget, heads);
  Selector selector(policy, requests, backend.threads());
  const bool judged = policy.scorer->traits().queries.kind == QueryNeed::Kind::judged;
  for (const LayerTensors& layer : prompts) {
    selector.add_layer(judged ? LayerView::of_judged(layer) : LayerView(layer), *backend.scoring(layer));
  }
  return {selector.finish()};
}

}  // namespace laprox::testing
