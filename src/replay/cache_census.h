#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "laprox/sweep.h"

namespace laprox {

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
