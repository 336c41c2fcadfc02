#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "laprox/budget.h"
#include "laprox/tensor.h"

namespace laprox {

/// A foreign kernel's results on one prompt, by layer and array: scores [kv_heads, C]; column_norms, column_sums,
/// value_norms [query_heads, C]; output [M, D]; kept [budgets, kv_heads, C]. Their shapes are right.
class Candidate {
 public:
  virtual ~Candidate() = default;

  virtual std::string name() const = 0;  ///< what messages call it: a file's path
  /// What it says of itself, where it does.
  virtual const std::optional<std::string>& policy() const = 0;
  virtual const std::optional<ElementType>& precision() const = 0;
  virtual const std::vector<BudgetRequest>& budgets() const = 0;
  virtual const std::vector<Index>& output_positions() const = 0;  ///< [M], ascending, all of them stored queries

  virtual bool has(Index layer, const std::string& array) const = 0;
  /// Whether any layer has it.
  virtual bool has(const std::string& array) const = 0;
  /// The element type of scores, column_norms, column_sums, value_norms or output.
  virtual ElementType type(Index layer, const std::string& array) const = 0;
  /// One of them in float64. Its values may be anything.
  virtual Matrix read(Index layer, const std::string& array) const = 0;
  /// [budget][kv_head][token]: 1 or 0.
  virtual std::vector<std::vector<std::vector<std::uint8_t>>> read_kept(Index layer) const = 0;

  /// Throws for an array that should not be there, or not so.
  [[noreturn]] virtual void refuse(const std::string& array, const std::string& expected,
                                   const std::string& found) const = 0;
};

}  // namespace laprox
