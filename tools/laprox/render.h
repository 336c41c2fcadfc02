#pragma once

#include <string>

#include "laprox/report.h"

namespace laprox::cli {

/// A report for people: policies down, budgets across, the pooled relative error of the model, the best of a column
/// marked.
std::string render_table(const Report& report);
/// One row per dump, policy, budget and layer, and one for the whole model (`model`).
std::string render_csv(const Report& report);
std::string render_json(const Report& report);

/// By the name of the format: table, csv or json.
std::string render(const Report& report, const std::string& format);

/// Text cells in columns: the first column to the left, the others to the right.
std::string align(const std::vector<std::vector<std::string>>& rows);

}  // namespace laprox::cli
