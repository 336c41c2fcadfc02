#pragma once

#include <optional>
#include <vector>

#include "laprox/cost.h"
#include "laprox/ranks.h"

namespace laprox {

/// What a layer's self-check found.
struct LayerCheck {
  std::optional<double> output_error;  ///< relative Frobenius error against the stored output, where there is one
  double tolerance = 0;  ///< what the rounding of a model that computes in the layer's coarsest stored type explains

  bool passed() const { return !output_error || *output_error <= tolerance; }
};

/// 1e-3 for float64 and float32 (which may have been computed in TF32), 1e-2 for float16, 5e-2 for bfloat16: a few
/// units of rounding, accumulated over the sums of an attention layer.
double self_check_tolerance(const LayerSummary& layer);

/// Throws VerificationError, naming the first layer whose check failed.
void require_passed(const DumpInfo& info, const std::vector<LayerCheck>& checks);

/// Replays every layer's exact output at output_positions and compares it with the framework's own output in the dump.
/// Reads and checks every tensor. [layer]. Throws DumpError, BackendError.
std::vector<LayerCheck> check_dump(const LayerSource& dump, const Backend& backend, const Progress& progress = {});

/// The same of some dumps at once by several ranks, which share their layers: [dump][layer], on every rank. Throws
/// RankFailed too.
std::vector<std::vector<LayerCheck>> check_dumps(const std::vector<const LayerSource*>& dumps, const Backend& backend,
                                                 Ranks& ranks, const DumpProgress& progress = {});

}  // namespace laprox
