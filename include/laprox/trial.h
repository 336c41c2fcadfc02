#pragma once

#include "laprox/sweep.h"

namespace laprox {

/// How long a sweep of this dump computes on this machine, in seconds, without reading: trial sweeps of one layer of
/// random numbers, in the shape of the dump's first layer but with at most 4,096 tokens and half of them, say what an
/// operation and a layer take (estimate_cost has their numbers). They take a second or two for a layer of llama-3.1-8b.
/// Throws UsageError where the dump, or a prompt of 2,048 tokens in its place, cannot serve the options.
double estimate_seconds(const DumpInfo& dump, const SweepOptions& options, const Backend& backend);

}  // namespace laprox
