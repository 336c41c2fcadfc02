#include "render.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace laprox::cli {

namespace {

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
  if (report.arrays.contains("regret")) {
    values.emplace_back("regret", model ? report.at("model_regret", {d, p, b}) : report.at("regret", {d, p, b, layer}));
  }
  return values;
}

/// The first earlier policy that keeps exactly the same entries, or nothing.
std::string twin(const Report& report, std::size_t d, std::size_t p, std::size_t b) {
  const double index = report.arrays.contains("identical_to") ? report.at("identical_to", {d, p, b}) : -1;
  return index < 0 ? "" : report.policies[static_cast<std::size_t>(index)];
}

/// RFC 4180: quoted where it must be.
std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

}  // namespace

std::string render_csv(const Report& report) {
  std::string text = "dump,policy,budget_tokens,layer";
  for (const auto& [name, value] : figures(report, 0, 0, 0, 0)) text += "," + name;
  text += ",budget,policy_spec,identical_to\n";
  visit_rows(report, [&](std::size_t d, std::size_t p, std::size_t b, std::size_t layer) {
    const bool model = layer == static_cast<std::size_t>(report.layers);
    text += fmt::format("{},{},{},{}", csv_field(report.dumps[d]), csv_field(report.policies[p]),
                        report.at("budget_tokens", {d, b}), model ? "model" : std::to_string(layer));
    for (const auto& [name, value] : figures(report, d, p, b, layer)) {
      text += std::isnan(value) ? "," : fmt::format(",{}", value);
    }
    text += fmt::format(",{},{},{}\n", csv_field(report.budgets[b]), csv_field(report.policy_specs[p]),
                        csv_field(twin(report, d, p, b)));
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
    row["identical_to"] = twin(report, d, p, b);
    json["rows"].push_back(std::move(row));
  });
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string render(const Report& report, const std::string& format, const std::string& metric) {
  return format == "csv" ? render_csv(report) : format == "json" ? render_json(report) : render_table(report, metric);
}

}  // namespace laprox::cli
