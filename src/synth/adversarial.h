#pragma once

#include <string>

#include "laprox/layer.h"

namespace laprox {

/// Changes a synthetic layer, in float32, so that careless arithmetic breaks on it (see adversarial_kinds).
void make_adversarial(LayerTensors& layer, const std::string& kind);

}  // namespace laprox
