#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "laprox/backend.h"
#include "laprox/budget.h"
#include "laprox/policy.h"
#include "laprox/ranks.h"
#include "laprox/sweep.h"
#include "render.h"

namespace laprox::cli {

/// --backend, --device and --threads, which every computing subcommand has.
struct BackendArguments {
  std::string name = "cpu";
  std::optional<int> device;
  int threads = 0;

  void add_to(CLI::App& command);
  std::unique_ptr<Backend> make(const Ranks& ranks = single_rank()) const;
};

/// The files of lists among them: F of each @F.
std::vector<std::filesystem::path> list_files(const std::vector<std::string>& words);

/// Paths as given, with each @FILE replaced by the paths that the file lists, one a line (# begins a comment), and each
/// pattern (*, ?, [...]) that is no file's name by the files that it matches, sorted. Throws UsageError, FileError.
std::vector<std::string> expand_paths(const std::vector<std::string>& words);

/// Of an option that names a file to write: an empty name is refused.
CLI::Validator file_name();

/// Refuses what is there and is no regular file: reading a pipe or a device may never end.
CLI::Validator text_file();

/// --metric: the figure that a table shows.
void add_metric(CLI::App& command, TableOptions& table);
/// --metric, --summary and --compare.
void add_table_options(CLI::App& command, TableOptions& table);
/// Says so where one of them was given and the format is another than the table.
void note_idle_table_options(const CLI::App& command, const std::string& format);
/// --format, with the formats that a subcommand knows; the first is the default.
void add_format(CLI::App& command, std::string& format, const std::vector<std::string>& known);

/// An element type by its name; throws UsageError, naming the option.
ElementType parse_element_type(const std::string& name, const std::string& option);

/// Lists given as separate words, as comma-separated words, or both. `of_all`, where given, becomes the labels of those
/// that the word `all` stands for.
std::vector<Policy> parse_policies(const std::vector<std::string>& words, std::set<std::string>* of_all = nullptr);
std::vector<BudgetRequest> parse_budgets(const std::vector<std::string>& words);

}  // namespace laprox::cli
