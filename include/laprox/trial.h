#pragma once

#include "laprox/sweep.h"

namespace laprox {

/// How long a sweep of this dump computes on this machine, in seconds, without reading: a trial sweep of one layer of
/// random numbers, in the shape of the dump's first one but with no more tokens than some 20 GFLOP allow, times what
/// the dump costs more (estimate_cost). It takes twice as long as the trial. Throws UsageError where the dump cannot
/// serve the options.
double estimate_seconds(const DumpInfo& dump, const SweepOptions& options, const Backend& backend);

}  // namespace laprox
