#pragma once

#include "backends/cuda/layer.h"
#include "laprox/backend.h"

namespace laprox::cuda {

/// Backend::layer_errors: logits on tensor cores, everything that errors are formed from in float32 with float64 sums,
/// one walk along each ranking, errors without cancellation.
LayerErrors layer_errors(const LayerTensors& layer, const std::vector<LayerKeep>& policies, SoftmaxMode mode,
                         int threads);

}  // namespace laprox::cuda
