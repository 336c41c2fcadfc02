#pragma once

#include <filesystem>
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
  Index kv_source = -1;  ///< the earlier layer whose KV cache this one reads; -1: it has its own
  bool has_residual_norms = false;
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

  /// KV heads of all caches; a cache that several layers read counts once.
  Index total_kv_heads() const;
  bool shares_caches() const;
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

}  // namespace laprox
