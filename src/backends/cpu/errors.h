#pragma once

#include "laprox/backend.h"

namespace laprox::cpu {

/// Backend::layer_errors in float32: every policy's budgets in one walk along its rankings, errors formed without
/// cancellation.
LayerErrors layer_errors(const LayerTensors& layer, const std::vector<LayerKeep>& policies, SoftmaxMode mode,
                         int threads);

}  // namespace laprox::cpu
