#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "laprox/layer_source.h"
#include "laprox/progress.h"
#include "laprox/ranks.h"

namespace laprox {

/// Reads a dump one layer at a time. The constructor checks the whole structure; values are checked when they are read.
class DumpReader : public LayerSource {
 public:
  /// `threads`: how many inflate the chunks of a compressed dump and look for values that are not finite; 0: all.
  /// Throws DumpError (structure) or FileError (no such file).
  explicit DumpReader(const std::filesystem::path& path, int threads = 0);
  ~DumpReader() override;
  DumpReader(DumpReader&&) noexcept;

  const DumpInfo& info() const override;

  LayerTensors read_layer(Index layer, DumpInfo::Rows rows, ElementType type) const override;
  void check_other_queries(Index layer, DumpInfo::Rows read) const override;
  std::optional<Matrix> read_output(Index layer) const override;
  std::string content_hash() const override;
  /// What another rank's content_hash gave for the same file, which need not be hashed here then.
  void learn_hash(const std::string& hash) const;
  /// The file is closed; it is refused when it is read again and has changed.
  void rest() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Opens many dumps, quicker than one by one; they rest, so that their number is bound by no limit of open files.
/// Throws as DumpReader does.
std::vector<DumpReader> open_dumps(const std::vector<std::string>& paths, int threads = 0);

/// The dumps' content hashes, on every rank, which take the files in turn; each thread hashes a file of its own.
/// `progress` counts the files of this rank.
std::vector<std::string> content_hashes(const std::vector<const DumpReader*>& dumps, int threads,
                                        Ranks& ranks = single_rank(), const Progress& progress = {});

/// Throws UsageError where two dumps are the same file or hold the same bytes: they would count as two samples. Only
/// dumps of equal size that agree in samples of their bytes are read whole. All ranks call it together.
void check_distinct(const std::vector<DumpReader>& dumps, int threads, Ranks& ranks = single_rank(),
                    const Progress& progress = {});

}  // namespace laprox
