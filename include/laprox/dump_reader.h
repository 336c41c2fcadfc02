#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "laprox/dump_info.h"

namespace laprox {

/// Reads a dump one layer at a time. The constructor checks the whole structure; values are checked when they are read.
class DumpReader {
 public:
  /// Throws DumpError (structure) or FileError (no such file).
  explicit DumpReader(const std::filesystem::path& path);
  ~DumpReader();
  DumpReader(DumpReader&&) noexcept;

  const DumpInfo& info() const;

  /// Layer `layer` with the given rows of q, every tensor converted to `type`: float32, float64, or the layer's common
  /// type, which converts nothing.
  /// Throws DumpError on a non-finite value or one beyond the range of `type`.
  LayerTensors read_layer(Index layer, DumpInfo::Rows rows, ElementType type) const;

  /// Throws DumpError if q holds a non-finite value in any stored row outside `read`; memory: one block of rows.
  void check_other_queries(Index layer, DumpInfo::Rows read) const;

  /// The framework's own layer output [M, D] at output_positions, or nothing where the dump has none.
  std::optional<Matrix> read_output(Index layer) const;

  /// SHA-256 of the file's bytes, in hexadecimal.
  std::string content_hash() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace laprox
