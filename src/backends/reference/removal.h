#pragma once

#include "laprox/backend.h"

namespace laprox::reference {

/// ScoringKernels::removal_energies over the last `queries` stored queries.
Matrix removal_energies(const LayerTensors& layer, Index queries, OverQueries over, bool joint);

/// ScoringKernels::far_energies.
Matrix far_energies(const LayerTensors& layer, Index distance, Index queries);

}  // namespace laprox::reference
