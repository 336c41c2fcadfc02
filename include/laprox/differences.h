#pragma once

#include <string>
#include <vector>

#include "laprox/figures.h"
#include "laprox/report.h"

namespace laprox {

/// One policy at one budget in two reports, over the dumps that both have.
struct CellDifference {
  std::string policy, budget;
  Index dumps = 0;               ///< where both reports have the figure
  double first = 0, second = 0;  ///< means over these dumps
  double largest = 0;            ///< largest |second - first| of a dump
  Index other_kept = 0;          ///< dumps in which some head keeps another number of tokens
};

struct ReportDifferences {
  std::vector<CellDifference> cells;  ///< policies in the order of the first report, then budgets
  std::vector<std::string> notes;     ///< what only one report has
};

/// Compares two reports in one figure of the whole model. Dumps are the same by their SHA-256, policies by their spec,
/// budgets by their label. Throws UsageError where the figure is missing or no dump, policy or budget is common.
ReportDifferences compare_reports(const Report& first, const Report& second, const Figure& figure);

}  // namespace laprox
