#pragma once

#include <string_view>

#include "laprox/dump_info.h"
#include "laprox/layer.h"

namespace laprox {

/// What a refusal of numbers that leave the range of `computed` advises. Half types are computed with in float32.
inline std::string_view advice_on_range(ElementType computed) {
  return computed == ElementType::float64 ? "no backend has a wider range: scale the dump's tensors"
                                          : "--backend reference computes in float64";
}

/// Errors and scores are sums of squares: throws BackendError where those of a layer's outputs, or of a head's weights
/// beside its learned sink, are so small that a backend has no numbers for them, and would silently count them as 0.
/// What lies in a device's memory is not looked at.
void check_not_too_small(const LayerTensors& layer, const DumpInfo& dump);

}  // namespace laprox
