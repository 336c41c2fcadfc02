#pragma once

#include <string>
#include <vector>

#include "laprox/figures.h"
#include "laprox/report.h"
#include "laprox/statistics.h"

namespace laprox {

/// One figure of one policy at one budget over all dumps of a report, and how it stands among the other policies.
struct ComparedCell {
  Summary summary;
  std::vector<double> samples;  ///< [dump]
  bool on_budget = true;        ///< keeps exactly the budget in every dump
  bool oracle = false;          ///< reads the judging queries
  Index twin = -1;              ///< an earlier policy that keeps exactly the same entries in every dump, or -1
  /// In some dump, the cut falls among entries with equal scores that are more than 1 % of the budget: the order of
  /// equal scores decides this figure.
  bool tied = false;
  /// The largest share, over the dumps, of the kept entries that no judging or later query sees (sliding windows).
  double unseen = 0;
  bool best = false;      ///< the best mean of those that compete at this budget
  bool as_good = false;   ///< not the best mean, and not worse by a paired test; never below kFewestPairs dumps
  bool compared = false;  ///< it competes, and there are enough dumps to say whether it is worse

  /// Policies that spend another budget, and oracles, do not compete.
  bool competes() const { return on_budget && !oracle; }
};

/// [policy][budget]. Throws UsageError where the report lacks the figure.
std::vector<std::vector<ComparedCell>> compare_cells(const Report& report, const Figure& figure);

/// Policy `a` less policy `b` in every dump, at one budget.
PairedDifference compare_policies(const Report& report, const Figure& figure, const std::string& a,
                                  const std::string& b, std::size_t budget);

/// Entries that a layer keeps, over its KV heads.
double kept_pairs(const Report& report, std::size_t dump, std::size_t policy, std::size_t budget, std::size_t layer);

}  // namespace laprox
