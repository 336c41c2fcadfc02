#pragma once

#include <string>
#include <vector>

namespace laprox::cli {

/// The registries as rows of text; the first row is the heading.
using TextTable = std::vector<std::vector<std::string>>;
TextTable policy_table();     ///< scorers and published compositions
TextTable allocator_table();  ///< budget splits

/// Columns to the left, for a terminal; the summaries are left out.
std::string as_text(const TextTable& table);
std::string as_markdown(const TextTable& table);

}  // namespace laprox::cli
