#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "laprox/error.h"
#include "render.h"

namespace laprox::cli {

namespace {

/// A figure of the model that a table can show.
struct Metric {
  const char* name;
  const char* heading;
  bool most_is_best;
};

constexpr Metric kMetrics[] = {
    {"relative_error", "Relative error of the layer outputs, pooled over layers", false},
    {"mean_error", "Relative error of the layer outputs, mean over layers", false},
    {"regret", "Regret: (error - the oracle's) / (random's - the oracle's)", false},
    {"retained_mass", "Attention mass on kept keys, mean over layers", true},
    {"cosine_mean", "Cosine between kept and exact output, mean over queries and layers", true},
};

/// One figure over the dumps: its mean, its standard deviation, and what the table marks.
struct TableCell {
  double mean = 0, deviation = 0;
  bool on_budget = true;  ///< keeps exactly the budget
  bool oracle = false;    ///< reads the judging queries
  Index twin = -1;        ///< an earlier policy that keeps exactly the same entries in every dump, or -1

  bool competes() const { return on_budget && !oracle; }
};

class Table {
 public:
  Table(const Report& report, const Metric& metric) : report_(report), metric_(metric) {
    for (std::size_t p = 0; p < report.policies.size(); ++p) {
      auto& row = cells_.emplace_back();
      for (std::size_t b = 0; b < report.budgets.size(); ++b) row.push_back(make_cell(p, b));
    }
  }

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
  TableCell make_cell(std::size_t p, std::size_t b) const {
    TableCell cell;
    const std::string array = "model_" + std::string(metric_.name);
    const double samples = static_cast<double>(report_.dumps.size());
    cell.oracle = report_.arrays.contains("is_oracle") && report_.at("is_oracle", {p}) == 1;
    for (std::size_t d = 0; d < report_.dumps.size(); ++d) {
      cell.mean += report_.at(array, {d, p, b}) / samples;
      cell.on_budget = cell.on_budget && spends_budget(d, p, b);
      const Index twin = twin_of(d, p, b);
      cell.twin = d == 0 || twin == cell.twin ? twin : -1;
    }
    for (std::size_t d = 0; d < report_.dumps.size() && samples > 1; ++d) {
      cell.deviation += std::pow(report_.at(array, {d, p, b}) - cell.mean, 2) / (samples - 1);
    }
    cell.deviation = std::sqrt(cell.deviation);
    return cell;
  }

  bool spends_budget(std::size_t d, std::size_t p, std::size_t b) const {
    Index heads = 0;
    for (std::size_t layer = 0; layer < static_cast<std::size_t>(report_.layers); ++layer) {
      for (std::size_t head = 0; head < static_cast<std::size_t>(report_.kv_heads); ++head) {
        if (report_.at("kept_count", {d, p, b, layer, head}) >= 0) ++heads;
      }
    }
    const double budget = report_.at("budget_tokens", {d, b}) * static_cast<double>(heads);
    return report_.at("kept_pairs", {d, p, b}) == budget;
  }

  Index twin_of(std::size_t d, std::size_t p, std::size_t b) const {
    return report_.arrays.contains("identical_to") ? static_cast<Index>(report_.at("identical_to", {d, p, b})) : -1;
  }

  std::string heading(std::size_t b) const {
    const std::string& text = report_.budgets[b];
    const double tokens = report_.at("budget_tokens", {0, b});
    for (std::size_t d = 1; d < report_.dumps.size(); ++d) {
      if (report_.at("budget_tokens", {d, b}) != tokens) return text;
    }
    const std::string count = fmt::format("{}", tokens);
    return count == text ? text : fmt::format("{} = {}", text, count);
  }

  bool best(std::size_t p, std::size_t b) const {
    if (cells_.size() < 2 || !cells_[p][b].competes()) return false;
    for (const auto& row : cells_) {
      if (!row[b].competes()) continue;
      const bool better = metric_.most_is_best ? row[b].mean > cells_[p][b].mean : row[b].mean < cells_[p][b].mean;
      if (better) return false;
    }
    return true;
  }

  std::string describe(std::size_t p, std::size_t b) const {
    const TableCell& cell = cells_[p][b];
    std::string text = std::isnan(cell.mean) ? "-" : fmt::format("{:.6f}", cell.mean);
    if (report_.dumps.size() > 1) text += fmt::format(" +- {:.6f}", cell.deviation);
    return text + (best(p, b) ? '*' : cell.oracle ? '+' : cell.on_budget ? ' ' : '!') + (cell.twin >= 0 ? '=' : ' ');
  }

  std::string title() const {
    const auto get = [&](const char* key) {
      const auto found = report_.provenance.find(key);
      return found == report_.provenance.end() ? std::string("?") : found->second;
    };
    std::string text = fmt::format("{}; budget in tokens per KV head\n", metric_.heading);
    text += fmt::format("softmax {}, judged by {} queries, backend {} ({})\n", get("softmax"), get("queries"),
                        get("backend"), get("device"));
    for (std::size_t d = 0; d < report_.dumps.size(); ++d) {
      text += fmt::format("{}: context {}{}{}\n", report_.dumps[d], report_.at("context_length", {d}),
                          report_.dump_models[d].empty() ? "" : ", ", report_.dump_models[d]);
    }
    if (report_.dumps.size() > 1) {
      text += fmt::format("mean and standard deviation over {} dumps\n", report_.dumps.size());
    }
    return text;
  }

  std::string footnotes() const {
    std::string text = fmt::format("\n* the {} at this budget\n", metric_.most_is_best ? "largest" : "smallest");
    std::vector<std::string> off_budget, oracles, twins;
    for (std::size_t p = 0; p < cells_.size(); ++p) {
      bool on_budget = true;
      if (cells_[p][0].oracle) oracles.push_back(report_.policies[p]);
      for (std::size_t b = 0; b < cells_[p].size(); ++b) {
        const TableCell& cell = cells_[p][b];
        on_budget = on_budget && cell.on_budget;
        if (cell.twin < 0) continue;
        twins.push_back(fmt::format("{} at {} is {}", report_.policies[p], report_.budgets[b],
                                    report_.policies[static_cast<std::size_t>(cell.twin)]));
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
    return text;
  }

  const Report& report_;
  const Metric& metric_;
  std::vector<std::vector<TableCell>> cells_;  ///< [policy][budget]
};

}  // namespace

std::vector<std::string> table_metrics() {
  std::vector<std::string> names;
  for (const Metric& metric : kMetrics) names.emplace_back(metric.name);
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

std::string render_table(const Report& report, const std::string& name) {
  for (const Metric& metric : kMetrics) {
    if (metric.name != name) continue;
    if (!report.arrays.contains("model_" + name)) {
      throw UsageError(
          fmt::format("the report has no {}{}", name,
                      name == "regret" ? "; it needs the policies random and oracle in the same sweep" : ""));
    }
    return Table(report, metric).text();
  }
  throw Bug("an unknown metric");
}

}  // namespace laprox::cli
