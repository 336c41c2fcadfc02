#pragma once

#include "laprox/backend.h"

namespace laprox::cpu {

/// See ScoringKernels.
Matrix removal_energies(const LayerTensors& layer, Index window, OverQueries over, bool joint, int threads);

/// What one pass over all prompt queries gives.
struct CausalSums {
  Matrix columns;  ///< ScoringKernels::column_sums, to the bit
  Matrix far;      ///< ScoringKernels::far_energies
};
CausalSums causal_sums(const LayerTensors& layer, Index distance, int threads);

}  // namespace laprox::cpu
