#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"
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

/// Gathers CacheFigures over the layers of a model, in any order.
class CacheCensus {
 public:
  CacheCensus(Index context, Index tokens) : context_(context), cuts_(static_cast<std::size_t>(tokens - context)) {}
  /// Entries that a sliding window (0: none) lets leave by age were not evicted. `place` tells the caches of a model
  /// apart.
  void add(const Lifetimes& gone, Index sliding_window, std::uint64_t place);
  void add(const CacheCensus& other);
  CacheFigures figures() const;
  /// A hash of all lifetimes so far.
  std::uint64_t fingerprint() const { return print_; }
  void write(ByteWriter& writer) const;
  void read(ByteReader& reader);

 private:
  Index context_;
  std::vector<std::uint8_t> cuts_;  ///< [decoded token]: whether any head's cache was cut before its query
  Index peak_ = 0, heads_ = 0, evictions_ = 0;
  Index entries_ = 0;  ///< summed over heads and queries
  std::uint64_t print_ = 0;
};

}  // namespace laprox
