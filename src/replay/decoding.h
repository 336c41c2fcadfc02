#pragma once

#include <vector>

#include "laprox/sweep.h"

namespace laprox {

/// Throws UsageError where a dump cannot replay options.schedule, or where a policy is not defined under it.
void check_schedule(const DumpInfo& dump, const SweepOptions& options);
void check_schedule(const DumpInfo& dump, const Policy& policy, const SweepOptions& options);

/// True where the schedule cuts a cache before the last decoded query of this dump.
bool cuts_while_decoding(const DumpInfo& dump, const Schedule& schedule);

/// What the caches of one layer held: [policy][budget][kv_head].
using LayerLifetimes = std::vector<std::vector<std::vector<Lifetimes>>>;

/// Replays the decoding of one layer: which entries each policy's caches hold at each step. `layer` holds every decoded
/// query, and the prompt queries before them that a policy's window reaches back to. `place`: the layer's index in the
/// selections. Throws BackendError where a score is not finite.
LayerLifetimes replay_decoding(const LayerTensors& layer, std::size_t place, const DumpInfo& dump,
                               const SweepOptions& options, const std::vector<Selection>& selections,
                               const Backend& backend);

}  // namespace laprox
