#include "laprox/differences.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "laprox/error.h"

namespace laprox {

namespace {

/// The places of a label in both reports.
using Pairs = std::vector<std::pair<std::size_t, std::size_t>>;

Pairs common(const std::string& what, const std::vector<std::string>& first, const std::vector<std::string>& second,
             const std::vector<std::string>& first_names, const std::vector<std::string>& second_names,
             std::vector<std::string>& notes) {
  Pairs pairs;
  std::vector<std::string> alone[2];
  for (std::size_t i = 0; i < first.size(); ++i) {
    const auto found = std::find(second.begin(), second.end(), first[i]);
    if (found == second.end()) {
      alone[0].push_back(first_names[i]);
    } else {
      pairs.emplace_back(i, static_cast<std::size_t>(found - second.begin()));
    }
  }
  for (std::size_t i = 0; i < second.size(); ++i) {
    if (std::find(first.begin(), first.end(), second[i]) == first.end()) alone[1].push_back(second_names[i]);
  }
  if (pairs.empty()) throw UsageError(fmt::format("the reports have no {} in common", what));
  for (const std::size_t side : {0, 1}) {
    if (alone[side].empty()) continue;
    notes.push_back(fmt::format("only in the {} report, {}: {}", side == 0 ? "first" : "second", what,
                                fmt::join(alone[side], ", ")));
  }
  return pairs;
}

class Comparison {
 public:
  Comparison(const Report& first, const Report& second, const std::string& array)
      : first_(first), second_(second), array_(array) {}

  CellDifference cell(const Pairs& dumps, std::pair<std::size_t, std::size_t> policy,
                      std::pair<std::size_t, std::size_t> budget) const {
    CellDifference cell{.policy = first_.policies[policy.first], .budget = first_.budgets[budget.first]};
    for (const auto& dump : dumps) {
      const double before = first_.at(array_, {dump.first, policy.first, budget.first});
      const double after = second_.at(array_, {dump.second, policy.second, budget.second});
      if (std::isnan(before) || std::isnan(after)) continue;
      ++cell.dumps;
      cell.first += before;
      cell.second += after;
      cell.largest = std::max(cell.largest, std::abs(after - before));
      cell.other_kept += keeps_others(dump, policy, budget) ? 1 : 0;
    }
    if (cell.dumps > 0) {
      cell.first /= static_cast<double>(cell.dumps);
      cell.second /= static_cast<double>(cell.dumps);
    }
    return cell;
  }

 private:
  bool keeps_others(std::pair<std::size_t, std::size_t> dump, std::pair<std::size_t, std::size_t> policy,
                    std::pair<std::size_t, std::size_t> budget) const {
    const auto layers = static_cast<std::size_t>(std::min(first_.layers, second_.layers));
    const auto heads = static_cast<std::size_t>(std::min(first_.kv_heads, second_.kv_heads));
    for (std::size_t layer = 0; layer < layers; ++layer) {
      for (std::size_t head = 0; head < heads; ++head) {
        if (first_.at("kept_count", {dump.first, policy.first, budget.first, layer, head}) !=
            second_.at("kept_count", {dump.second, policy.second, budget.second, layer, head}))
          return true;
      }
    }
    return false;
  }

  const Report& first_;
  const Report& second_;
  const std::string& array_;
};

}  // namespace

ReportDifferences compare_reports(const Report& first, const Report& second, const Figure& figure) {
  const std::string array = figure.model_array();
  for (const Report* report : {&first, &second}) {
    if (!report->arrays.contains(array)) throw UsageError(fmt::format("one of the reports has no {}", figure.name));
  }
  ReportDifferences differences;
  auto& notes = differences.notes;
  const Pairs dumps = common("dumps", first.dump_hashes, second.dump_hashes, first.dumps, second.dumps, notes);
  const Pairs policies =
      common("policies", first.policy_specs, second.policy_specs, first.policies, second.policies, notes);
  const Pairs budgets = common("budgets", first.budgets, second.budgets, first.budgets, second.budgets, notes);
  for (const char* key : {"softmax", "queries", "schedule", "backend", "check"}) {
    if (first.stated(key) == second.stated(key)) continue;
    notes.push_back(fmt::format("the reports differ in {}: {} and {}", key, first.stated(key), second.stated(key)));
  }
  const Comparison comparison(first, second, array);
  for (const auto& policy : policies) {
    for (const auto& budget : budgets) differences.cells.push_back(comparison.cell(dumps, policy, budget));
  }
  return differences;
}

}  // namespace laprox
