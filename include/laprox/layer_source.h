#pragma once

#include <optional>
#include <string>

#include "laprox/dump_info.h"

namespace laprox {

/// Where a replay takes its layers from, one at a time: a dump in a file (DumpReader), or arrays in memory
/// (ArraySource). Reading a layer may happen on another thread than the one that works on the layer before it.
class LayerSource {
 public:
  virtual ~LayerSource() = default;

  virtual const DumpInfo& info() const = 0;

  /// Layer `layer` with the given rows of q, every tensor converted to `type`: float32, float64, or the layer's common
  /// type, which converts nothing.
  /// Throws DumpError on a non-finite value or one beyond the range of `type`.
  virtual LayerTensors read_layer(Index layer, DumpInfo::Rows rows, ElementType type) const = 0;

  /// Throws DumpError if q holds a non-finite value in any stored row outside `read`; memory: one block of rows.
  virtual void check_other_queries(Index layer, DumpInfo::Rows read) const = 0;

  /// The framework's own layer output [M, D] at output_positions, or nothing where there is none.
  virtual std::optional<Matrix> read_output(Index layer) const = 0;

  /// SHA-256 of the contents, in hexadecimal; empty where there is no file.
  virtual std::string content_hash() const = 0;

  /// Lets go of what is held only to read layers, such as an open file; reading one takes it up again.
  virtual void rest() const {}

 protected:
  LayerSource() = default;
  LayerSource(const LayerSource&) = default;
  LayerSource(LayerSource&&) = default;
  LayerSource& operator=(const LayerSource&) = default;
  LayerSource& operator=(LayerSource&&) = default;
};

}  // namespace laprox
