#pragma once

#include <span>

#include "io/hdf5.h"
#include "laprox/budget.h"
#include "laprox/dump_reader.h"

namespace laprox::io {

/// A foreign kernel's results on one dump, in the layout of score files. The constructor checks the whole structure.
class CandidateReader {
 public:
  /// `dump` is the dump that the file should belong to; its hash is computed only where the file states one. Throws
  /// DumpError, FileError.
  CandidateReader(const std::filesystem::path& path, const DumpReader& dump);

  const std::optional<std::string>& policy() const { return policy_; }
  const std::optional<ElementType>& precision() const { return precision_; }
  const std::vector<BudgetRequest>& budgets() const { return budgets_; }
  const std::vector<Index>& output_positions() const { return output_positions_; }

  bool has(Index layer, const std::string& dataset) const { return reader_.has(object(layer, dataset)); }
  /// Whether any layer has it.
  bool has(const std::string& dataset) const;

  /// The element type of scores, column_norms, column_sums, value_norms or output.
  ElementType type(Index layer, const std::string& dataset) const { return reader_.array(object(layer, dataset)).type; }
  /// One of them in float64. Its values may be anything.
  Matrix read(Index layer, const std::string& dataset) const;
  /// [budget][kv_head][token]: 1 or 0, from masks or from lists of tokens. Throws DumpError on numbers that are
  /// neither.
  std::vector<std::vector<std::vector<std::uint8_t>>> read_kept(Index layer) const;

  /// Throws DumpError for a dataset that the file should not have.
  [[noreturn]] void refuse(const std::string& dataset, const std::string& expected, const std::string& found) const;

 private:
  static std::string object(Index layer, const std::string& dataset);
  void check_format(const DumpReader& dump);
  void read_attributes();
  void check_layers(const DumpInfo& dump);
  void check_dataset(Index layer, const std::string& dataset, const DumpInfo& dump);
  void check_output_positions(const DumpInfo& dump);
  std::vector<std::uint8_t> mask_of(std::span<const std::int64_t> values, const std::string& name, Index head) const;
  std::vector<std::uint8_t> mask_of_list(std::span<const std::int64_t> tokens, const std::string& name,
                                         Index head) const;

  Hdf5Reader reader_;
  Index context_ = 0;
  std::optional<std::string> policy_;
  std::optional<ElementType> precision_;
  std::vector<BudgetRequest> budgets_;
  std::vector<Index> output_positions_, layers_;
};

}  // namespace laprox::io
