#pragma once

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "io/hdf5.h"
#include "laprox/dump_info.h"
#include "laprox/layer.h"

namespace laprox::io {

/// Holds a dump to its word that layers read one cache (kv_source): their k and v are the same. Of each such layer that
/// was read it keeps hashes alone.
class SharedContents {
 public:
  /// Throws DumpError where k or v differs from that of the layer's source, if that was read before in the same type.
  void check(const LayerTensors& layer, const DumpInfo& dump, const Hdf5Reader& file);

 private:
  using Hashes = std::array<std::string, 2>;  ///< of k and of v

  std::mutex mutex_;
  std::map<std::pair<Index, ElementType>, Hashes> read_;
};

}  // namespace laprox::io
