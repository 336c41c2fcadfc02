#include "render.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace laprox::cli {

namespace {

/// Mean and, over several dumps, standard deviation of the model's pooled error of one cell.
struct Spread {
  double mean = 0, deviation = 0;
};

Spread spread(const Report& report, std::size_t policy, std::size_t budget) {
  Spread result;
  const double samples = static_cast<double>(report.dumps.size());
  for (std::size_t d = 0; d < report.dumps.size(); ++d) {
    result.mean += report.at("model_relative_error", {d, policy, budget}) / samples;
  }
  for (std::size_t d = 0; d < report.dumps.size(); ++d) {
    const double off = report.at("model_relative_error", {d, policy, budget}) - result.mean;
    if (samples > 1) result.deviation += off * off / (samples - 1);
  }
  result.deviation = std::sqrt(result.deviation);
  return result;
}

/// A policy that ignores its budget takes part in no comparison at equal budgets.
bool spends_budget(const Report& report, std::size_t policy) {
  for (std::size_t d = 0; d < report.dumps.size(); ++d) {
    for (std::size_t b = 0; b < report.budgets.size(); ++b) {
      Index heads = 0;
      for (std::size_t layer = 0; layer < static_cast<std::size_t>(report.layers); ++layer) {
        for (std::size_t head = 0; head < static_cast<std::size_t>(report.kv_heads); ++head) {
          if (report.at("kept_count", {d, policy, b, layer, head}) >= 0) ++heads;
        }
      }
      const double budget = report.at("budget_tokens", {d, b}) * static_cast<double>(heads);
      if (report.at("kept_pairs", {d, policy, b}) != budget) return false;
    }
  }
  return true;
}

std::string budget_heading(const Report& report, std::size_t budget) {
  const std::string& text = report.budgets[budget];
  const double tokens = report.at("budget_tokens", {0, budget});
  for (std::size_t d = 1; d < report.dumps.size(); ++d) {
    if (report.at("budget_tokens", {d, budget}) != tokens) return text;
  }
  const std::string count = fmt::format("{}", tokens);
  return count == text ? text : fmt::format("{} = {}", text, count);
}

std::string title(const Report& report) {
  std::string text = "Relative error of the layer outputs, pooled over layers; budget in tokens per KV head\n";
  const auto get = [&](const char* key) {
    const auto found = report.provenance.find(key);
    return found == report.provenance.end() ? std::string("?") : found->second;
  };
  text += fmt::format("softmax {}, judged by {} queries, backend {} ({})\n", get("softmax"), get("queries"),
                      get("backend"), get("device"));
  for (std::size_t d = 0; d < report.dumps.size(); ++d) {
    text += fmt::format("{}: context {}{}{}\n", report.dumps[d], report.at("context_length", {d}),
                        report.dump_models[d].empty() ? "" : ", ", report.dump_models[d]);
  }
  if (report.dumps.size() > 1) text += fmt::format("mean and standard deviation over {} dumps\n", report.dumps.size());
  return text;
}

/// Calls visit(dump, policy, budget, layer) for every layer of every cell that exists, then with layer = layers for the
/// model.
template <class Visit>
void visit_rows(const Report& report, const Visit& visit) {
  for (std::size_t d = 0; d < report.dumps.size(); ++d) {
    for (std::size_t p = 0; p < report.policies.size(); ++p) {
      for (std::size_t b = 0; b < report.budgets.size(); ++b) {
        for (std::size_t layer = 0; layer < static_cast<std::size_t>(report.layers); ++layer) {
          if (!std::isnan(report.at("relative_error", {d, p, b, layer}))) visit(d, p, b, layer);
        }
        visit(d, p, b, static_cast<std::size_t>(report.layers));
      }
    }
  }
}

double layer_pairs(const Report& report, std::size_t d, std::size_t p, std::size_t b, std::size_t layer) {
  double pairs = 0;
  for (std::size_t head = 0; head < static_cast<std::size_t>(report.kv_heads); ++head) {
    pairs += std::max(0.0, report.at("kept_count", {d, p, b, layer, head}));
  }
  return pairs;
}

/// Figures of one row, by name; a layer's own, or the model's.
std::vector<std::pair<std::string, double>> figures(const Report& report, std::size_t d, std::size_t p, std::size_t b,
                                                    std::size_t layer) {
  std::vector<std::pair<std::string, double>> values;
  const bool model = layer == static_cast<std::size_t>(report.layers);
  for (const char* name : {"relative_error", "retained_mass", "cosine_mean"}) {
    values.emplace_back(name,
                        model ? report.at("model_" + std::string(name), {d, p, b}) : report.at(name, {d, p, b, layer}));
  }
  values.emplace_back("kept_pairs", model ? report.at("kept_pairs", {d, p, b}) : layer_pairs(report, d, p, b, layer));
  for (const char* name : {"cosine_min", "query_error_mean", "query_error_p95", "query_error_p99", "query_error_max",
                           "bound", "bound_ratio"}) {
    if (!report.arrays.contains(name)) continue;
    values.emplace_back(name, model ? std::nan("") : report.at(name, {d, p, b, layer}));
  }
  values.emplace_back("mean_error", model ? report.at("model_mean_error", {d, p, b}) : std::nan(""));
  return values;
}

/// RFC 4180: quoted where it must be.
std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

}  // namespace

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

std::string render_table(const Report& report) {
  std::vector<std::vector<std::string>> rows(1);
  rows[0].push_back("policy");
  for (std::size_t b = 0; b < report.budgets.size(); ++b) rows[0].push_back(budget_heading(report, b) + " ");
  std::vector<double> best(report.budgets.size(), HUGE_VAL);
  for (std::size_t p = 0; p < report.policies.size(); ++p) {
    if (!spends_budget(report, p)) continue;
    for (std::size_t b = 0; b < best.size(); ++b) best[b] = std::min(best[b], spread(report, p, b).mean);
  }
  for (std::size_t p = 0; p < report.policies.size(); ++p) {
    auto& row = rows.emplace_back();
    row.push_back(report.policies[p]);
    const bool competes = report.policies.size() > 1 && spends_budget(report, p);
    for (std::size_t b = 0; b < best.size(); ++b) {
      const Spread cell = spread(report, p, b);
      std::string text = fmt::format("{:.6f}", cell.mean);
      if (report.dumps.size() > 1) text += fmt::format(" +- {:.6f}", cell.deviation);
      row.push_back(text + (competes && cell.mean == best[b] ? "*" : " "));
    }
  }
  return title(report) + "\n" + align(rows) + "\n* the smallest error at this budget\n";
}

std::string render_csv(const Report& report) {
  std::string text = "dump,policy,budget_tokens,layer";
  for (const auto& [name, value] : figures(report, 0, 0, 0, 0)) text += "," + name;
  text += ",budget,policy_spec\n";
  visit_rows(report, [&](std::size_t d, std::size_t p, std::size_t b, std::size_t layer) {
    const bool model = layer == static_cast<std::size_t>(report.layers);
    text += fmt::format("{},{},{},{}", csv_field(report.dumps[d]), csv_field(report.policies[p]),
                        report.at("budget_tokens", {d, b}), model ? "model" : std::to_string(layer));
    for (const auto& [name, value] : figures(report, d, p, b, layer)) {
      text += std::isnan(value) ? "," : fmt::format(",{}", value);
    }
    text += fmt::format(",{},{}\n", csv_field(report.budgets[b]), csv_field(report.policy_specs[p]));
  });
  return text;
}

std::string render_json(const Report& report) {
  nlohmann::ordered_json json;
  json["provenance"] = report.provenance;
  for (std::size_t d = 0; d < report.dumps.size(); ++d) {
    json["dumps"].push_back(
        {{"path", report.dumps[d]}, {"sha256", report.dump_hashes[d]}, {"model", report.dump_models[d]}});
  }
  json["rows"] = nlohmann::ordered_json::array();
  visit_rows(report, [&](std::size_t d, std::size_t p, std::size_t b, std::size_t layer) {
    nlohmann::ordered_json row{{"dump", report.dumps[d]},
                               {"policy", report.policies[p]},
                               {"budget_tokens", static_cast<Index>(report.at("budget_tokens", {d, b}))}};
    if (layer == static_cast<std::size_t>(report.layers))
      row["layer"] = "model";
    else
      row["layer"] = layer;
    for (const auto& [name, value] : figures(report, d, p, b, layer)) {
      if (name == "kept_pairs")
        row[name] = static_cast<Index>(value);
      else if (std::isfinite(value))
        row[name] = value;
      else
        row[name] = nullptr;
    }
    row["budget"] = report.budgets[b];
    row["policy_spec"] = report.policy_specs[p];
    json["rows"].push_back(std::move(row));
  });
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string render(const Report& report, const std::string& format) {
  return format == "csv" ? render_csv(report) : format == "json" ? render_json(report) : render_table(report);
}

}  // namespace laprox::cli
