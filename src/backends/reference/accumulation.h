#pragma once

#include "laprox/backend.h"

namespace laprox::reference {

/// Backend::accumulate, step by step.
std::vector<Lifetimes> accumulate(const LayerTensors& layer, const Accumulation& start);

}  // namespace laprox::reference
