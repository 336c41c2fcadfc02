#pragma once

#include <string>
#include <vector>

#include "laprox/scorer.h"

namespace laprox::cli {

/// The registries as rows of text; the first row is the heading.
using TextTable = std::vector<std::vector<std::string>>;
TextTable policy_table();     ///< scorers and published compositions
TextTable allocator_table();  ///< budget splits

/// Whether a larger budget keeps all that a smaller one keeps, with the scorer's own split.
bool is_nested(const ScorerInfo& info);

/// Columns to the left, for a terminal; the summaries are left out.
std::string as_text(const TextTable& table);
std::string as_markdown(const TextTable& table);

}  // namespace laprox::cli
