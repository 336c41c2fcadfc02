#pragma once

#include "backends/cuda/half_removal.h"

namespace laprox::cuda {

/// Scratch of removal_double.cu, for one KV head's group at a time.
struct DoubleScratch {
  DeviceBuffer<float> logits;       ///< [T, rows]
  DeviceBuffer<double> weights;     ///< [T, rows]
  DeviceBuffer<double> parts;       ///< [splits, rows, d_v]
  DeviceBuffer<double> rests;       ///< [rows, d_v] o without the dominant entry's part
  DeviceBuffer<double> remainders;  ///< [rows] weights of the others
  DeviceBuffer<int> dominants;      ///< [rows] the dominant entry, or -1
  DeviceBuffer<double> outputs;     ///< [rows, d_v] o
  DeviceBuffer<double> grams;       ///< [pairs, d_v, d_v] M_ab
  DeviceBuffer<double> moments;     ///< [pairs, queries, d_v] M_ab o_b
  DeviceBuffer<double> squares;     ///< [pairs, queries] o_a M_ab o_b
  DeviceBuffer<double> projected;   ///< [tokens, pairs, d_v] v M_ab
  DeviceBuffer<double> forms;       ///< [C, pairs] v M_ab v
  DeviceBuffer<double> linear;      ///< [tokens, pairs, queries] v M_ab o_b
};

/// Device memory that calls may share one after the other.
struct RemovalScratch {
  HalfScratch half;
  DoubleScratch in_double;
};

/// removal.cu: ScoringKernels::removal_energies over the queries of `range`: [kv_heads, C]. Waits for the device.
void removal_energies(const Layer& layer, QueryRange range, bool maximum, bool joint, double* energies,
                      RemovalScratch& scratch, cudaStream_t stream);
/// ScoringKernels::far_energies over the last `queries` stored queries, which are the prompt's last ones. Waits for the
/// device.
void far_energies(const Layer& layer, int distance, int queries, double* energies, RemovalScratch& scratch,
                  cudaStream_t stream);

/// removal_double.cu: the same in float64 from the logits on, for every layer.
void removal_energies_double(const Layer& layer, QueryRange range, bool maximum, bool joint, double* energies,
                             DoubleScratch& scratch, cudaStream_t stream);
void far_energies_double(const Layer& layer, int distance, int queries, LogitSums sums, double* energies,
                         DoubleScratch& scratch, cudaStream_t stream);

}  // namespace laprox::cuda
