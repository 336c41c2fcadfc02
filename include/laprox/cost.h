#pragma once

#include "laprox/sweep.h"

namespace laprox {

/// What working on a dump takes, computed from its shapes alone. Bytes of memory; floating-point operations of the
/// products (a multiply-add counts as two).
struct Cost {
  double layer_bytes = 0;    ///< tensors of the largest layer, with the queries that are read
  double ahead_bytes = 0;    ///< the same of the layer that is read ahead, in half types where it is stored so
  double reading_bytes = 0;  ///< the largest tensor as it is stored, where it is converted while it is read
  double logit_bytes = 0;    ///< logits and sums of values with their weights, all threads
  double output_bytes = 0;   ///< head outputs of all policies and budgets
  double ranking_bytes = 0;  ///< rankings and sorted scores of all policies, all layers
  double scoring_flops = 0, column_sum_flops = 0, value_norm_flops = 0;  ///< per model: window, all queries, norms
  double oracle_flops = 0;   ///< what scorers do beyond these primitives: the oracle that eliminates greedily
  double judging_flops = 0;  ///< exact output, and one walk per policy

  double total_flops() const {
    return scoring_flops + column_sum_flops + value_norm_flops + oracle_flops + judging_flops;
  }
  double total_bytes() const {
    return layer_bytes + ahead_bytes + reading_bytes + logit_bytes + output_bytes + ranking_bytes;
  }
};

/// The cost of a sweep; options may hold no policies (then it is that of the exact output alone).
Cost estimate_cost(const DumpInfo& dump, const SweepOptions& options, const Backend& backend);

/// Throws BackendError where that exceeds the machine's memory.
void check_memory(const DumpInfo& dump, const SweepOptions& options, const Backend& backend);

}  // namespace laprox
