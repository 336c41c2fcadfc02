#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "laprox/backend.h"
#include "laprox/budget.h"
#include "laprox/policy.h"
#include "laprox/sweep.h"

namespace laprox::cli {

/// --backend and --threads, which every computing subcommand has.
struct BackendArguments {
  std::string name = "cpu";
  int threads = 0;

  void add_to(CLI::App& command);
  std::unique_ptr<Backend> make() const;
};

/// --format, with the formats that a subcommand knows; the first is the default.
void add_metric(CLI::App& command, std::string& metric);
void add_format(CLI::App& command, std::string& format, const std::vector<std::string>& known);

/// An element type by its name; throws UsageError, naming the option.
ElementType parse_element_type(const std::string& name, const std::string& option);

/// Lists given as separate words, as comma-separated words, or both.
std::vector<Policy> parse_policies(const std::vector<std::string>& words);
std::vector<BudgetRequest> parse_budgets(const std::vector<std::string>& words);

}  // namespace laprox::cli
