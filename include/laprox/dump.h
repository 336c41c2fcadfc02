#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "laprox/layer.h"

namespace laprox {

/// What a dump says of one layer without its tensors.
struct LayerSummary {
  LayerGeometry geometry;
  AttentionForm attention = {};
  bool has_bias = false;
  bool has_output = false;
  ElementType q_type{}, k_type{}, v_type{}, w_o_type{};

  /// The element type that all four tensors are stored in, if there is one.
  std::optional<ElementType> common_type() const;
};

/// Everything in a dump but its tensors. data/README.md documents the file format.
struct DumpInfo {
  std::filesystem::path path;
  std::string model, source, prompt;    ///< provenance; empty where the dump has none
  Index context_length = 0;             ///< C
  Index tokens = 0;                     ///< T
  std::vector<Index> query_positions;   ///< [N], ascending
  std::vector<Index> output_positions;  ///< [M], ascending, a subset of query_positions; empty: no stored outputs
  std::vector<LayerSummary> layers;

  Index total_kv_heads() const;
  /// Rows [first, last) of q whose positions lie in [begin, end).
  struct Rows {
    Index first = 0, last = 0;
    Index count() const { return last - first; }
  };
  Rows rows_between(Index begin, Index end) const;
  /// Rows of the last `window` prompt queries; throws UsageError, naming `who` needs them, where some are not stored.
  Rows window_rows(Index window, const std::string& who) const;
  /// Rows of all prompt queries; throws UsageError, naming `who` needs them, where some are not stored.
  Rows prompt_rows(const std::string& who) const;
};

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

/// Writes a dump one layer at a time, into a temporary file that commit() renames to its final name.
class DumpWriter {
 public:
  /// `info` gives everything but the layers. Throws FileError if the file exists and not `replace`.
  DumpWriter(const DumpInfo& info, bool replace);
  ~DumpWriter();

  /// Appends one layer; its tensors, of element type float32 or float64, are stored as `type`.
  void write_layer(const LayerTensors& layer, ElementType type, const std::optional<Matrix>& output = std::nullopt);
  void commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace laprox
