#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "laprox/layer_source.h"

namespace laprox {

/// Reads a dump one layer at a time. The constructor checks the whole structure; values are checked when they are read.
class DumpReader : public LayerSource {
 public:
  /// Throws DumpError (structure) or FileError (no such file).
  explicit DumpReader(const std::filesystem::path& path);
  ~DumpReader() override;
  DumpReader(DumpReader&&) noexcept;

  const DumpInfo& info() const override;

  LayerTensors read_layer(Index layer, DumpInfo::Rows rows, ElementType type) const override;
  void check_other_queries(Index layer, DumpInfo::Rows read) const override;
  std::optional<Matrix> read_output(Index layer) const override;
  std::string content_hash() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Throws UsageError where two dumps are the same file or hold the same bytes: they would count as two samples.
void check_distinct(const std::vector<DumpReader>& dumps);

}  // namespace laprox
