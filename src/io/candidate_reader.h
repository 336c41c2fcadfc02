#pragma once

#include <span>

#include "io/hdf5.h"
#include "laprox/candidate.h"
#include "laprox/dump_reader.h"

namespace laprox::io {

/// Results in the layout of score files. The constructor checks the whole structure.
class CandidateReader : public Candidate {
 public:
  /// `dump` is the dump that the file should belong to; its hash is computed only where the file states one. Throws
  /// DumpError, FileError.
  CandidateReader(const std::filesystem::path& path, const DumpReader& dump);

  std::string name() const override { return reader_.path(); }
  const std::optional<std::string>& policy() const override { return policy_; }
  const std::optional<ElementType>& precision() const override { return precision_; }
  const std::vector<BudgetRequest>& budgets() const override { return budgets_; }
  const std::vector<Index>& output_positions() const override { return output_positions_; }

  bool has(Index layer, const std::string& dataset) const override { return reader_.has(object(layer, dataset)); }
  bool has(const std::string& dataset) const override;

  ElementType type(Index layer, const std::string& dataset) const override {
    return reader_.array(object(layer, dataset)).type;
  }
  Matrix read(Index layer, const std::string& dataset) const override;
  /// The same of numbers per KV head and token. Throws DumpError where one is not finite.
  Matrix read_finite(Index layer, const std::string& dataset) const;
  /// From masks or from lists of tokens. Throws DumpError on numbers that are neither.
  std::vector<std::vector<std::vector<std::uint8_t>>> read_kept(Index layer) const override;

  /// Throws DumpError.
  [[noreturn]] void refuse(const std::string& dataset, const std::string& expected,
                           const std::string& found) const override;

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
