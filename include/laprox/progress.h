#pragma once

#include <functional>
#include <string>

#include "laprox/tensor.h"

namespace laprox {

/// Told after each step of long work; `done` of `total` steps.
using Progress = std::function<void(Index done, Index total, const std::string& what)>;

}  // namespace laprox
