#pragma once

#include <functional>
#include <string>

#include "laprox/dump_info.h"

namespace laprox {

/// Told after each step of long work; `done` of `total` steps.
using Progress = std::function<void(Index done, Index total, const std::string& what)>;

/// Told after each layer of a pass over one of several dumps.
using DumpProgress = std::function<void(const DumpInfo& dump, Index layer, const std::string& what)>;

}  // namespace laprox
