#pragma once

#include "laprox/backend.h"

namespace laprox::cpu {

/// Backend::accumulate. One step costs O(entries x head_size) per query head: logits do not depend on what is evicted
/// meanwhile, so those of a block of steps are one product, and no attention is formed twice.
std::vector<Lifetimes> accumulate(const LayerTensors& layer, const Accumulation& start, int threads);

}  // namespace laprox::cpu
