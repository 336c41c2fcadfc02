#include "data.h"

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <numeric>

#include "base/convert.h"
#include "base/scatter.h"

namespace laprox::bench {

namespace {

/// Normal numbers with the given deviation, rounded to bfloat16.
void fill(Tensor& half, Tensor& exact, std::vector<Index> shape, double deviation, std::uint64_t seed) {
  half = Tensor(ElementType::bfloat16, shape);
  exact = Tensor(ElementType::float64, shape);
  constexpr Index kBlock = 1 << 16;
  double* values = exact.data<double>();
#pragma omp parallel for
  for (Index first = 0; first < exact.size(); first += kBlock) {
    const Index count = std::min(kBlock, exact.size() - first);
    for (Index i = first; i < first + count; ++i) {
      const std::uint64_t bits = scatter(seed + 0x9e3779b97f4a7c15ULL * static_cast<std::uint64_t>(i));
      const double u = (static_cast<double>(bits >> 40) + 1) * 0x1p-24, angle = static_cast<double>(bits & 0xffffff);
      values[i] = deviation * std::sqrt(-2 * std::log(u)) * std::cos(angle * 0x1p-24 * 2 * M_PI);
    }
    io::convert_to(values + first, half.raw() + first * 2, ElementType::bfloat16, count);
    io::convert(half.raw() + first * 2, ElementType::bfloat16, values + first, count);
  }
}

}  // namespace

BenchLayer make_layer(Index tokens, Index queries) {
  BenchLayer layer;
  LayerTensors& half = layer.half;
  half.geometry = {32, 8, 128, 128, 4096};
  half.attention.scale = 1 / std::sqrt(128.0);
  half.context_length = half.tokens = tokens;
  half.query_positions.resize(static_cast<std::size_t>(queries));
  std::iota(half.query_positions.begin(), half.query_positions.end(), tokens - queries);
  layer.exact.geometry = half.geometry;
  layer.exact.attention = half.attention;
  layer.exact.context_length = layer.exact.tokens = tokens;
  layer.exact.query_positions = half.query_positions;
  // Queries somewhat longer than keys make attention as uneven as it is in models.
  fill(half.q, layer.exact.q, {32, queries, 128}, 2.0, 1);
  fill(half.k, layer.exact.k, {8, tokens, 128}, 1.0, 2);
  fill(half.v, layer.exact.v, {8, tokens, 128}, 1.0, 3);
  fill(half.w_o, layer.exact.w_o, {32 * 128, 4096}, 0.02, 4);
  return layer;
}

}  // namespace laprox::bench
