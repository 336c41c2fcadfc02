#include "render.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "laprox/comparison.h"
#include "laprox/names.h"

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

/// Figures of one row, by name; a layer's own, or the model's.
std::vector<std::pair<std::string, double>> row_figures(const Report& report, std::size_t d, std::size_t p,
                                                        std::size_t b, std::size_t layer) {
  std::vector<std::pair<std::string, double>> values;
  const bool model = layer == static_cast<std::size_t>(report.layers);
  for (const Figure& figure : figures()) {
    const bool of_layer = report.arrays.contains(figure.layer_array()) && figure.layer_meaning;
    const bool of_model = report.arrays.contains(figure.model_array()) && figure.model_meaning;
    if (!of_layer && !of_model) continue;
    double value = std::nan("");
    if (model && of_model) value = report.at(figure.model_array(), {d, p, b});
    if (!model && of_layer) value = report.at(figure.layer_array(), {d, p, b, layer});
    values.emplace_back(figure.name, value);
    // Where it has stood since the first version of the format, which programs may read by position.
    if (figure.name == std::string("cosine_mean")) {
      values.emplace_back("kept_pairs",
                          model ? report.at("kept_pairs", {d, p, b}) : kept_pairs(report, d, p, b, layer));
    }
  }
  return values;
}

/// Calls visit(figure, policy, budget, cell) for every figure of the whole model.
template <class Visit>
void visit_summaries(const Report& report, const Visit& visit) {
  for (const Figure& figure : figures()) {
    if (!figure.heading || !report.arrays.contains(figure.model_array())) continue;
    const auto cells = compare_cells(report, figure);
    for (std::size_t p = 0; p < cells.size(); ++p) {
      for (std::size_t b = 0; b < cells[p].size(); ++b) visit(figure, p, b, cells[p][b]);
    }
  }
}

std::vector<std::pair<std::string, double>> statistics(const Summary& summary) {
  return {{"mean", summary.mean},
          {"deviation", summary.deviation},
          {"lower_quartile", summary.lower_quartile},
          {"median", summary.median},
          {"upper_quartile", summary.upper_quartile}};
}

std::string csv_number(double value) { return std::isnan(value) ? "" : fmt::format("{}", value); }

nlohmann::ordered_json json_number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

/// The first earlier policy that keeps exactly the same entries, or nothing.
std::string twin(const Report& report, std::size_t d, std::size_t p, std::size_t b) {
  const double index = report.arrays.contains("identical_to") ? report.at("identical_to", {d, p, b}) : -1;
  return index < 0 ? "" : report.policies[index];
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
  for (const auto& [name, value] : row_figures(report, 0, 0, 0, 0)) text += "," + name;
  text += ",budget,policy_spec,identical_to\n";
  visit_rows(report, [&](std::size_t d, std::size_t p, std::size_t b, std::size_t layer) {
    const bool model = layer == static_cast<std::size_t>(report.layers);
    text += fmt::format("{},{},{},{}", csv_field(report.dumps[d]), csv_field(report.policies[p]),
                        report.at("budget_tokens", {d, b}), model ? "model" : std::to_string(layer));
    for (const auto& [name, value] : row_figures(report, d, p, b, layer)) {
      text += "," + csv_number(value);
    }
    text += fmt::format(",{},{},{}\n", csv_field(report.budgets[b]), csv_field(report.policy_specs[p]),
                        csv_field(twin(report, d, p, b)));
  });
  return text;
}

std::string render_summary_csv(const Report& report) {
  std::string text = "figure,policy,budget,dumps";
  for (const auto& [name, value] : statistics({})) text += "," + name;
  text += ",best,as_good,decided_by_ties\n";
  visit_summaries(report, [&](const Figure& figure, std::size_t p, std::size_t b, const ComparedCell& cell) {
    text += fmt::format("{},{},{},{}", figure.name, csv_field(report.policies[p]), csv_field(report.budgets[b]),
                        report.dumps.size());
    for (const auto& [name, value] : statistics(cell.summary)) text += "," + csv_number(value);
    text += fmt::format(",{},{},{}\n", cell.best, cell.compared ? fmt::format("{}", cell.best || cell.as_good) : "",
                        cell.tied);
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
    for (const auto& [name, value] : row_figures(report, d, p, b, layer)) {
      if (name == "kept_pairs")
        row[name] = static_cast<Index>(value);
      else
        row[name] = json_number(value);
    }
    row["budget"] = report.budgets[b];
    row["policy_spec"] = report.policy_specs[p];
    row["identical_to"] = twin(report, d, p, b);
    json["rows"].push_back(std::move(row));
  });
  json["summary"] = nlohmann::ordered_json::array();
  visit_summaries(report, [&](const Figure& figure, std::size_t p, std::size_t b, const ComparedCell& cell) {
    nlohmann::ordered_json row{{"figure", figure.name},
                               {"policy", report.policies[p]},
                               {"budget", report.budgets[b]},
                               {"dumps", report.dumps.size()}};
    for (const auto& [name, value] : statistics(cell.summary)) row[name] = json_number(value);
    row["best"] = cell.best;
    row["as_good"] = cell.compared ? nlohmann::ordered_json(cell.best || cell.as_good) : nullptr;
    row["decided_by_ties"] = cell.tied;
    json["summary"].push_back(std::move(row));
  });
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string render(const Report& report, const std::string& format, const TableOptions& options) {
  if (format == "json") return render_json(report);
  if (format == "csv") return printable(options.summary ? render_summary_csv(report) : render_csv(report));
  return printable(render_table(report, options));
}

}  // namespace laprox::cli
