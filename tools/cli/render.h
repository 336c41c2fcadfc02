#pragma once

#include <string>
#include <vector>

#include "laprox/report.h"

namespace laprox::cli {

/// The figures that a table can show.
std::vector<std::string> table_metrics();

/// What a table shows.
struct TableOptions {
  std::string metric = "relative_error";
  bool summary = false;  ///< medians and quartiles over the dumps instead of means and deviations
  std::string compare;   ///< empty, or two policies "A,B" whose paired difference follows the table
};

/// A report for people: policies down, budgets across, one figure of the whole model in each cell; the best of a column
/// is marked, with those that are not worse by a paired test, and so are cells that keep exactly what an earlier policy
/// keeps or that ties decide. Throws UsageError where the report lacks the figure.
std::string render_table(const Report& report, const TableOptions& options);
/// One row per dump, policy, budget and layer, and one for the whole model (`model`).
std::string render_csv(const Report& report);
/// One row per policy, budget and figure of the whole model: its statistics over the dumps.
std::string render_summary_csv(const Report& report);
/// The rows of both.
std::string render_json(const Report& report);

/// By the name of the format: table, csv or json.
std::string render(const Report& report, const std::string& format, const TableOptions& options);

/// Text cells in columns: the first column to the left, the others to the right.
std::string align(const std::vector<std::vector<std::string>>& rows);

}  // namespace laprox::cli
