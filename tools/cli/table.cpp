#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "laprox/comparison.h"
#include "laprox/error.h"
#include "laprox/policy.h"
#include "render.h"

namespace laprox::cli {

namespace {

class Table {
 public:
  Table(const Report& report, const Figure& figure, bool summary)
      : report_(report), figure_(figure), summary_(summary), cells_(compare_cells(report, figure)) {}

  std::string text() const {
    std::vector<std::vector<std::string>> rows(1, {"policy"});
    for (std::size_t b = 0; b < report_.budgets.size(); ++b) rows[0].push_back(heading(b) + "  ");
    for (std::size_t p = 0; p < cells_.size(); ++p) {
      auto& row = rows.emplace_back(std::vector<std::string>{report_.policies[p]});
      for (std::size_t b = 0; b < cells_[p].size(); ++b) row.push_back(describe(p, b));
    }
    return title() + "\n" + align(rows) + footnotes();
  }

 private:
  std::string heading(std::size_t b) const {
    const std::string& text = report_.budgets[b];
    const double tokens = report_.at("budget_tokens", {0, b});
    for (std::size_t d = 1; d < report_.dumps.size(); ++d) {
      if (report_.at("budget_tokens", {d, b}) != tokens) return text;
    }
    const std::string count = fmt::format("{}", tokens);
    return count == text ? text : fmt::format("{} = {}", text, count);
  }

  std::string describe(std::size_t p, std::size_t b) const {
    const ComparedCell& cell = cells_[p][b];
    const Summary& of = cell.summary;
    std::string text = std::isnan(of.mean) ? "-" : fmt::format("{:.6f}", summary_ ? of.median : of.mean);
    if (report_.dumps.size() > 1 && !std::isnan(of.mean)) {
      text += summary_ ? fmt::format(" [{:.6f}, {:.6f}]", of.lower_quartile, of.upper_quartile)
                       : fmt::format(" +- {:.6f}", of.deviation);
    }
    const char standing = cell.best || cell.as_good ? '*' : cell.oracle ? '+' : cell.on_budget ? ' ' : '!';
    return text + standing + (cell.twin >= 0 ? '=' : cell.tied ? '~' : ' ');
  }

  std::string title() const {
    const auto get = [&](const char* key) {
      const auto found = report_.provenance.find(key);
      return found == report_.provenance.end() ? std::string("?") : found->second;
    };
    std::string text = fmt::format("{}; budget in tokens per KV head\n", figure_.heading);
    text += fmt::format("softmax {}, judged by {} queries, backend {} ({})\n", get("softmax"), get("queries"),
                        get("backend"), get("device"));
    if (report_.provenance.contains("schedule")) text += schedule_line();
    if (report_.provenance.contains("check")) text += fmt::format("check of stored outputs: {}\n", get("check"));
    for (std::size_t d = 0; d < report_.dumps.size(); ++d) {
      text += fmt::format("{}: context {}{}{}\n", report_.dumps[d], report_.at("context_length", {d}),
                          report_.dump_models[d].empty() ? "" : ", ", report_.dump_models[d]);
    }
    if (report_.dumps.size() > 1) {
      text += fmt::format("{} over {} dumps\n", summary_ ? "median [quartiles]" : "mean and standard deviation",
                          report_.dumps.size());
    }
    return text;
  }

  /// What the caches of the largest budget held; the queries are those of a model that saw everything.
  std::string schedule_line() const {
    const ReportArray& peaks = report_.array("cache_peak");
    return fmt::format(
        "schedule {}: at most {} entries in a KV head's cache; the queries are the uncompressed run's, so that errors do "
        "not feed back\n",
        report_.provenance.at("schedule"), *std::max_element(peaks.values.begin(), peaks.values.end()));
  }

  std::string footnotes() const {
    std::string text = best_footnote();
    std::vector<std::string> off_budget, oracles, twins, tied;
    for (std::size_t p = 0; p < cells_.size(); ++p) {
      bool on_budget = true;
      std::vector<std::string> tied_budgets;
      if (cells_[p][0].oracle) oracles.push_back(report_.policies[p]);
      for (std::size_t b = 0; b < cells_[p].size(); ++b) {
        const ComparedCell& cell = cells_[p][b];
        on_budget = on_budget && cell.on_budget;
        if (cell.tied) tied_budgets.push_back(report_.budgets[b]);
        if (cell.twin < 0) continue;
        twins.push_back(
            fmt::format("{} at {} is {}", report_.policies[p], report_.budgets[b], report_.policies[cell.twin]));
      }
      if (!tied_budgets.empty()) {
        const bool everywhere = tied_budgets.size() > 1 && tied_budgets.size() == report_.budgets.size();
        tied.push_back(fmt::format("{} at {}", report_.policies[p],
                                   everywhere ? "every budget" : fmt::format("{}", fmt::join(tied_budgets, ", "))));
      }
      if (!on_budget) off_budget.push_back(report_.policies[p]);
    }
    if (!off_budget.empty()) {
      text += fmt::format("! does not keep the budget, and does not compete: {}\n", fmt::join(off_budget, ", "));
    }
    if (!oracles.empty()) {
      text += fmt::format("+ reads the judging queries, and does not compete: {}\n", fmt::join(oracles, ", "));
    }
    if (!twins.empty()) text += fmt::format("= keeps exactly the same entries: {}\n", fmt::join(twins, ", "));
    if (!tied.empty()) {
      text += fmt::format(
          "~ the cut falls among equal scores, more than 1 % of the budget, of which the first by "
          "position are kept; another order gives another figure: {}\n",
          fmt::join(tied, "; "));
    }
    return text + unseen_footnote();
  }

  /// Per policy, the budget at which the largest share of what it keeps serves no query.
  std::string unseen_footnote() const {
    std::vector<std::string> shares;
    for (std::size_t p = 0; p < cells_.size(); ++p) {
      const auto worst = std::max_element(cells_[p].begin(), cells_[p].end(),
                                          [](const auto& a, const auto& b) { return a.unseen < b.unseen; });
      if (worst->unseen == 0) continue;
      shares.push_back(fmt::format("{} {:.3g} % at {}", report_.policies[p], 100 * worst->unseen,
                                   report_.budgets[static_cast<std::size_t>(worst - cells_[p].begin())]));
    }
    if (shares.empty()) return "";
    return fmt::format(
        "sliding windows: of the kept entries, those that no judging or later query sees are paid for and serve nothing; "
        "at most: {}\n",
        fmt::join(shares, ", "));
  }

  std::string best_footnote() const {
    std::string text = fmt::format("\n* the {} mean at this budget", figure_.most_is_best ? "largest" : "smallest");
    if (report_.dumps.size() == 1)
      return fmt::format("\n* the {} at this budget\n", figure_.most_is_best ? "largest" : "smallest");
    if (static_cast<Index>(report_.dumps.size()) < kFewestPairs) {
      return text +
             fmt::format("; with fewer than {} dumps nothing can be said of whether it is better than the others\n",
                         kFewestPairs);
    }
    return text + ", and those that are not worse (Wilcoxon signed-rank test over the dumps, 5 %)\n";
  }

  const Report& report_;
  const Figure& figure_;
  bool summary_;
  std::vector<std::vector<ComparedCell>> cells_;  ///< [policy][budget]
};

/// The paired difference of two policies at each budget.
std::string compared(const Report& report, const Figure& figure, const std::string& list) {
  const std::vector<std::string> names = split_policies(list);
  if (names.size() != 2) throw UsageError(fmt::format("--compare: expected two policies, A,B, found '{}'", list));
  std::string text =
      fmt::format("\n{} less {}, {}, in {} dumps:\n", names[0], names[1], figure.name, report.dumps.size());
  std::vector<std::vector<std::string>> rows{
      {"budget", "mean", "median", "95 % interval", "lower in", "p (signed-rank)"}};
  for (std::size_t b = 0; b < report.budgets.size(); ++b) {
    const PairedDifference found = compare_policies(report, figure, names[0], names[1], b);
    rows.push_back({report.budgets[b], fmt::format("{:+.6f}", found.mean), fmt::format("{:+.6f}", found.estimate),
                    found.enough() ? fmt::format("{:+.6f} .. {:+.6f}", found.interval_low, found.interval_high) : "-",
                    fmt::format("{} of {}", found.lower, found.pairs),
                    found.enough() ? fmt::format("{:.3g}", found.p) : "-"});
  }
  text += align(rows);
  if (static_cast<Index>(report.dumps.size()) < kFewestPairs) {
    text += fmt::format("with fewer than {} dumps nothing can be said of which is better\n", kFewestPairs);
  } else {
    text += "median: of the means of any two differences (Hodges-Lehmann); the interval is the signed-rank test's\n";
  }
  return text;
}

}  // namespace

std::vector<std::string> table_metrics() {
  std::vector<std::string> names;
  for (const Figure& figure : figures()) {
    if (figure.heading) names.emplace_back(figure.name);
  }
  return names;
}

std::string align(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i]) : fmt::format("  {:>{}}", row[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string render_table(const Report& report, const TableOptions& options) {
  const Figure& shown = figure(options.metric);
  const std::string table = Table(report, shown, options.summary).text();
  return options.compare.empty() ? table : table + compared(report, shown, options.compare);
}

}  // namespace laprox::cli
