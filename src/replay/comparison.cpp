#include "laprox/comparison.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "laprox/error.h"
#include "laprox/policy.h"

namespace laprox {

namespace {

constexpr double kTieShare = 0.01;  ///< of what is kept

/// Whether a cell spends its budget, in a report that is older than on_budget: as if no layers shared a cache.
bool spends_budget(const Report& report, std::size_t d, std::size_t p, std::size_t b) {
  Index heads = 0;
  for (std::size_t layer = 0; layer < static_cast<std::size_t>(report.layers); ++layer) {
    for (std::size_t head = 0; head < static_cast<std::size_t>(report.kv_heads); ++head) {
      if (report.at("kept_count", {d, 0, b, layer, head}) >= 0) ++heads;
    }
  }
  return report.at("kept_pairs", {d, p, b}) == report.at("budget_tokens", {d, b}) * static_cast<double>(heads);
}

ComparedCell make_cell(const Report& report, const Figure& figure, std::size_t p, std::size_t b) {
  ComparedCell cell;
  cell.oracle = report.arrays.contains("is_oracle") && report.at("is_oracle", {p}) == 1;
  for (std::size_t d = 0; d < report.dumps.size(); ++d) {
    cell.samples.push_back(report.at(figure.model_array(), {d, p, b}));
    const double kept = report.at("kept_pairs", {d, p, b});
    const bool on_budget =
        report.arrays.contains("on_budget") ? report.at("on_budget", {d, p, b}) == 1 : spends_budget(report, d, p, b);
    cell.on_budget = cell.on_budget && on_budget;
    if (report.arrays.contains("tied_entries")) {
      cell.tied = cell.tied || report.at("tied_entries", {d, p, b}) > kTieShare * kept;
    }
    if (report.arrays.contains("model_unseen_entries") && kept > 0) {
      const double share = report.at("model_unseen_entries", {d, p, b}) / kept;
      cell.unseen = std::max(cell.unseen, share);
    }
    const Index twin =
        report.arrays.contains("identical_to") ? static_cast<Index>(report.at("identical_to", {d, p, b})) : -1;
    cell.twin = d == 0 || twin == cell.twin ? twin : -1;
  }
  cell.summary = summarize(cell.samples);
  return cell;
}

bool all_finite(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
}

/// Marks the best mean at one budget, and those that a paired test does not find worse.
void mark_best(std::vector<std::vector<ComparedCell>>& cells, const Figure& figure, std::size_t b) {
  const auto better = [&](double x, double y) { return figure.most_is_best ? x > y : x < y; };
  const ComparedCell* best = nullptr;
  for (auto& row : cells) {
    if (!row[b].competes() || std::isnan(row[b].summary.mean)) continue;
    if (!best || better(row[b].summary.mean, best->summary.mean)) best = &row[b];
  }
  if (!best || cells.size() < 2) return;
  for (auto& row : cells) {
    ComparedCell& cell = row[b];
    if (!cell.competes() || std::isnan(cell.summary.mean)) continue;
    cell.best = cell.summary.mean == best->summary.mean;
    cell.compared = static_cast<Index>(cell.samples.size()) >= kFewestPairs && all_finite(cell.samples) &&
                    all_finite(best->samples);
    if (cell.best || !cell.compared) continue;
    const PairedDifference difference = compare_pairs(cell.samples, best->samples);
    const bool worse_direction = better(0.0, difference.estimate);
    cell.as_good = difference.p >= kSignificance || !worse_direction;
  }
}

std::size_t policy_index(const Report& report, const std::string& label) {
  const auto place = [](const std::vector<std::string>& among, const std::string& text) {
    return static_cast<std::size_t>(std::find(among.begin(), among.end(), text) - among.begin());
  };
  const std::size_t as_given = place(report.policies, label);
  if (as_given < report.policies.size()) return as_given;
  try {  // the same policy in another spelling
    const std::size_t same = place(report.policy_specs, to_string(parse_policy(label)));
    if (same < report.policies.size()) return same;
  } catch (const UsageError&) {  // no policy that is known here; a report may hold own ones
  }
  throw UsageError(
      fmt::format("--compare: no policy '{}' in this report; it has {}", label, fmt::join(report.policies, ", ")));
}

}  // namespace

std::vector<std::vector<ComparedCell>> compare_cells(const Report& report, const Figure& figure) {
  if (!report.arrays.contains(figure.model_array())) {
    const std::string name = figure.name;
    throw UsageError(fmt::format("the report has no {}{}", name,
                                 name == "regret" ? "; it needs the policies random and oracle in the same sweep"
                                 : name == "residual_error" ? "; it needs dumps with residual_norms"
                                                            : ""));
  }
  std::vector<std::vector<ComparedCell>> cells(report.policies.size());
  for (std::size_t p = 0; p < cells.size(); ++p) {
    for (std::size_t b = 0; b < report.budgets.size(); ++b) cells[p].push_back(make_cell(report, figure, p, b));
  }
  for (std::size_t b = 0; b < report.budgets.size(); ++b) mark_best(cells, figure, b);
  return cells;
}

PairedDifference compare_policies(const Report& report, const Figure& figure, const std::string& a,
                                  const std::string& b, std::size_t budget) {
  std::vector<double> of_a, of_b;
  const std::size_t first = policy_index(report, a), second = policy_index(report, b);
  for (std::size_t d = 0; d < report.dumps.size(); ++d) {
    of_a.push_back(report.at(figure.model_array(), {d, first, budget}));
    of_b.push_back(report.at(figure.model_array(), {d, second, budget}));
  }
  if (!all_finite(of_a) || !all_finite(of_b)) {
    throw UsageError(fmt::format("--compare: {} of {} and {} is not finite in every dump", figure.name, a, b));
  }
  return compare_pairs(of_a, of_b);
}

double kept_pairs(const Report& report, std::size_t d, std::size_t p, std::size_t b, std::size_t layer) {
  double pairs = 0;
  for (std::size_t head = 0; head < static_cast<std::size_t>(report.kv_heads); ++head) {
    pairs += std::max(0.0, report.at("kept_count", {d, p, b, layer, head}));
  }
  return pairs;
}

}  // namespace laprox
