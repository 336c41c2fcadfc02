#pragma once

#include "backends/cuda/kernels.h"

namespace laprox::cuda {

/// Scratch of the energies of one KV head's group at a time.
struct RemovalScratch {
  DeviceBuffer<float> logits;      ///< [T, rows]
  DeviceBuffer<double> weights;    ///< [T, rows]
  DeviceBuffer<double> parts;      ///< [splits, rows, d_v]
  DeviceBuffer<double> outputs;    ///< [rows, d_v] o
  DeviceBuffer<double> grams;      ///< [pairs, d_v, d_v] M_ab
  DeviceBuffer<double> moments;    ///< [pairs, queries, d_v] M_ab o_b
  DeviceBuffer<double> squares;    ///< [pairs, queries] o_a M_ab o_b
  DeviceBuffer<double> projected;  ///< [tokens, pairs, d_v] v M_ab
  DeviceBuffer<double> forms;      ///< [C, pairs] v M_ab v
  DeviceBuffer<double> linear;     ///< [tokens, pairs, queries] v M_ab o_b
};

/// removal.cu: ScoringKernels::removal_energies over the queries of `range`: [kv_heads, C], in float64 from the logits
/// on.
void removal_energies(const Layer& layer, QueryRange range, bool maximum, bool joint, double* energies,
                      cudaStream_t stream);
/// ScoringKernels::far_energies; the stored queries must be those at the positions 0 .. N - 1.
void far_energies(const Layer& layer, int distance, double* energies, cudaStream_t stream);

}  // namespace laprox::cuda
