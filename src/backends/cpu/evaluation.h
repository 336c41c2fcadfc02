#pragma once

#include "laprox/backend.h"

namespace laprox::cpu {

/// Backend::evaluate in float32: every policy's budgets in one walk along its rankings, errors formed without
/// cancellation.
LayerEvaluation evaluate(const LayerTensors& layer, const std::vector<LayerKeep>& policies, SoftmaxMode mode,
                         int threads);

}  // namespace laprox::cpu
