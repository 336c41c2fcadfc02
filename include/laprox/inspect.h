#pragma once

#include <optional>
#include <vector>

#include "laprox/plan.h"

namespace laprox {

/// What a layer's self-check found.
struct LayerCheck {
  std::optional<double> output_error;  ///< relative Frobenius error against the stored output, where there is one
};

/// Replays every layer's exact output at output_positions and compares it with the framework's own output in the dump.
/// Reads and checks every tensor. [layer]. Throws DumpError, BackendError.
std::vector<LayerCheck> check_dump(const DumpReader& dump, const Backend& backend, const Progress& progress = {});

}  // namespace laprox
