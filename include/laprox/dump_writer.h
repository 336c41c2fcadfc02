#pragma once

#include <memory>
#include <optional>

#include "laprox/dump_info.h"

namespace laprox {

/// Writes a dump one layer at a time, into a temporary file that commit() renames to its final name.
class DumpWriter {
 public:
  /// `info` gives everything but the layers. `gzip`: the level at which tensors are compressed, 1 to 9; 0: not at all.
  /// Throws FileError if the file exists and not `replace`.
  DumpWriter(const DumpInfo& info, bool replace, int gzip = 0);
  ~DumpWriter();

  /// Appends one layer; its tensors, of element type float32 or float64, are stored as `type`.
  void write_layer(const LayerTensors& layer, ElementType type, const std::optional<Matrix>& output = std::nullopt);
  void commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace laprox
