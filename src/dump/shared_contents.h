#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "laprox/dump_info.h"
#include "laprox/layer.h"

namespace laprox {

/// Holds a dump to its word that layers read one cache (kv_source): their k and v are the same. Of each such layer that
/// was read it keeps hashes alone.
class SharedContents {
 public:
  /// Throws DumpError where k or v differs from that of the layer's source, if that was read before in the same type;
  /// `object`, what it calls the layer, ends where "k" or "v" follows. A device's memory is not looked at.
  void check(const LayerTensors& layer, const DumpInfo& dump, const std::string& object);

 private:
  using Hash = std::array<std::uint64_t, 2>;
  using Hashes = std::array<Hash, 2>;  ///< of k and of v
  static Hash hash_of(const Tensor& tensor);

  std::mutex mutex_;
  std::map<std::pair<Index, ElementType>, Hashes> read_;
};

}  // namespace laprox
