#pragma once

#include <string>
#include <vector>

#include "laprox/report.h"

namespace laprox {

struct MergedReport {
  Report report;
  std::vector<std::string> notes;  ///< what was left out, and where the parts were made differently
};

/// One report of several over other dumps, as one sweep over all of them would have made it. `names` are the parts'
/// files, for messages. Policies (by their spec) and budgets that not every part has are left out. Kept tokens stay
/// where every part has them. Throws UsageError where two parts hold the same dump, differ in softmax, judging
/// queries or schedule, or have no policy or budget in common.
MergedReport merge_reports(const std::vector<Report>& parts, const std::vector<std::string>& names);

/// The report with the dumps of these hashes first, in their order; other dumps follow as they stand.
Report with_dump_order(const Report& report, const std::vector<std::string>& hashes);

}  // namespace laprox
