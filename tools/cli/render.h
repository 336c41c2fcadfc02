#pragma once

#include <string>
#include <vector>

#include "laprox/report.h"

namespace laprox::cli {

/// The figures that a table can show.
std::vector<std::string> table_metrics();

/// A report for people: policies down, budgets across, one figure of the whole model in each cell; the best of a column
/// is marked, and cells that keep exactly what an earlier policy keeps. Throws UsageError where the report lacks the
/// figure.
std::string render_table(const Report& report, const std::string& metric);
/// One row per dump, policy, budget and layer, and one for the whole model (`model`).
std::string render_csv(const Report& report);
std::string render_json(const Report& report);

/// By the name of the format: table, csv or json. `metric` is the table's.
std::string render(const Report& report, const std::string& format, const std::string& metric = "relative_error");

/// Text cells in columns: the first column to the left, the others to the right.
std::string align(const std::vector<std::vector<std::string>>& rows);

}  // namespace laprox::cli
