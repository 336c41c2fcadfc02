#pragma once

#include "base/convert.h"
#include "support/layers.h"

namespace laprox::testing {

/// The same tensors twice: in a half type, and the very numbers that it holds in float64.
struct HalfLayer {
  LayerTensors half, exact;
};

inline Tensor to_half(Tensor& values, ElementType type) {
  Tensor half(type, values.shape());
  io::convert_to(values.data<double>(), half.raw(), type, values.size());
  io::convert(half.raw(), type, values.data<double>(), values.size());
  return half;
}

/// `layer` with the queries at positions in [begin, end), rounded to `type`.
inline HalfLayer rounded(const LayerTensors& layer, Index begin, Index end, ElementType type) {
  HalfLayer result{with_queries(layer, begin, end, ElementType::float64),
                   with_queries(layer, begin, end, ElementType::float64)};
  result.half.q = to_half(result.exact.q, type);
  result.half.k = to_half(result.exact.k, type);
  result.half.v = to_half(result.exact.v, type);
  result.half.w_o = to_half(result.exact.w_o, type);
  return result;
}

/// Shapes at which kernels take other paths: several splits and tiles, every padded head size, odd sizes, groups 1
/// .. 8.
inline std::vector<LayerShape> gpu_shapes() {
  std::vector<LayerShape> shapes = varied_shapes();
  for (Index group = 1; group <= 8; ++group) {
    shapes.push_back({.geometry = {2 * group, 2, 20 + 9 * group, 17 + 15 * group, 40},
                      .context = 90 + 31 * group,
                      .decoded = 6,
                      .attention = {.scale = 0.15}});
  }
  shapes.push_back({.geometry = {4, 1, 128, 128, 96}, .context = 1500, .decoded = 40, .attention = {.scale = 0.09}});
  shapes.push_back({.geometry = {2, 1, 256, 256, 64},
                    .context = 333,
                    .decoded = 35,
                    .attention = {.scale = 0.06, .softcap = 20, .sliding_window = 100}});
  shapes.push_back({.geometry = {8, 2, 64, 64, 128},
                    .context = 700,
                    .decoded = 3,
                    .attention = {.scale = 0.125, .sliding_window = 128, .sinks = {0, 1, 2, 3, -1, -2, -3, 4}},
                    .bias = true});
  return shapes;
}

}  // namespace laprox::testing
