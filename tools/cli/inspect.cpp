#include "laprox/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "arguments.h"
#include "commands.h"
#include "laprox/dump_reader.h"
#include "laprox/error.h"
#include "output.h"
#include "progress.h"
#include "render.h"

namespace laprox::cli {

namespace {

struct InspectArguments {
  std::vector<std::string> dumps;
  std::string format;
  bool no_check = false, quiet = false;
  BackendArguments backend;
};

std::string scaled(double amount, const char* unit) {
  const char* prefixes[] = {"", "k", "M", "G", "T", "P"};
  int step = 0;
  for (; amount >= 1000 && step < 5; ++step) amount /= 1000;
  return fmt::format("{:.3g} {}{}", amount, prefixes[step], unit);
}

std::string range_of(const std::vector<Index>& positions) {
  if (positions.empty()) return "none";
  return fmt::format("{} ({} .. {})", positions.size(), positions.front(), positions.back());
}

std::string tolerance_range(const std::vector<LayerCheck>& checks) {
  const auto [least, most] = std::minmax_element(
      checks.begin(), checks.end(), [](const auto& a, const auto& b) { return a.tolerance < b.tolerance; });
  if (least->tolerance == most->tolerance) return fmt::format("{:g}", most->tolerance);
  return fmt::format("{:g} to {:g}", least->tolerance, most->tolerance);
}

std::vector<std::string> layer_row(const DumpInfo& info, std::size_t n, const std::vector<LayerCheck>& checks) {
  const LayerSummary& layer = info.layers[n];
  const LayerGeometry& g = layer.geometry;
  std::string extras;
  if (layer.attention.softcap > 0) extras += fmt::format(" softcap {}", layer.attention.softcap);
  if (layer.attention.sliding_window > 0) extras += fmt::format(" window {}", layer.attention.sliding_window);
  if (!layer.attention.sinks.empty()) extras += " sinks";
  if (layer.has_bias) extras += " bias";
  if (layer.kv_source >= 0) extras += fmt::format(" cache of layer {}", layer.kv_source);
  if (layer.has_residual_norms) extras += " residual";
  std::string check = "-";
  if (!checks.empty()) check = checks[n].output_error ? fmt::format("{:.2e}", *checks[n].output_error) : "no output";
  return {std::to_string(n),
          fmt::format("{}/{}", g.query_heads, g.kv_heads),
          fmt::format("{}", g.head_size),
          fmt::format("{}", g.value_size),
          fmt::format("{}", g.model_size),
          std::string(to_string(layer.k_type)),
          fmt::format("{:.6g}", layer.attention.scale),
          check,
          extras.empty() ? "" : extras.substr(1)};
}

void print_cost(const DumpInfo& info, const Backend& backend) {
  SweepOptions options;
  options.policies = {parse_policy("laprox")};
  if (info.rows_between(0, info.context_length).count() == info.context_length)
    options.policies.push_back(parse_policy("h2o"));
  options.budgets = {parse_budget("10%")};
  const Cost cost = estimate_cost(info, options, backend);
  out(fmt::format("plan    a sweep of {} at one budget: {} of memory, {}\n",
                  options.policies.size() > 1 ? "laprox and h2o" : "laprox", scaled(cost.total_bytes(), "B"),
                  scaled(cost.total_flops(), "FLOP")));
  out(fmt::format("          layer {}, read ahead {}, while reading {}, logits {}, outputs {}, rankings {}\n",
                  scaled(cost.layer_bytes, "B"), scaled(cost.ahead_bytes, "B"), scaled(cost.reading_bytes, "B"),
                  scaled(cost.logit_bytes, "B"), scaled(cost.output_bytes, "B"), scaled(cost.ranking_bytes, "B")));
  out(fmt::format("          window scores {}, column sums {}, value norms {}, judging {}\n",
                  scaled(cost.scoring_flops, "FLOP"), scaled(cost.column_sum_flops, "FLOP"),
                  scaled(cost.value_norm_flops, "FLOP"), scaled(cost.judging_flops, "FLOP")));
}

void print_table(const DumpInfo& info, const std::vector<LayerCheck>& checks, const Backend& backend) {
  out(fmt::format("{}\n", info.path.string()));
  out(fmt::format("model   {}\n", info.model.empty() ? "not stated" : info.model));
  out(fmt::format("source  {}\n", info.source.empty() ? "not stated" : info.source));
  out(fmt::format("tokens  {} = {} context + {} decoded\n", info.tokens, info.context_length,
                  info.tokens - info.context_length));
  out(fmt::format("queries {}; stored outputs {}\n", range_of(info.query_positions), range_of(info.output_positions)));
  print_cost(info, backend);
  std::vector<std::vector<std::string>> rows{
      {"layer", "heads q/kv", "d", "d_v", "D", "type", "scale", "self-check", "features"}};
  for (std::size_t n = 0; n < info.layers.size(); ++n) rows.push_back(layer_row(info, n, checks));
  out(fmt::format("\n{}", align(rows)));
  if (checks.empty()) return;
  out(fmt::format("\nself-check: relative Frobenius error of the exact output against the dump's stored output;\n"));
  out(fmt::format("at most {} is explained by the rounding of the layers' types\n", tolerance_range(checks)));
}

nlohmann::ordered_json to_json(const DumpInfo& info, const std::vector<LayerCheck>& checks) {
  nlohmann::ordered_json json{{"path", info.path.string()},
                              {"model", info.model},
                              {"source", info.source},
                              {"context_length", info.context_length},
                              {"tokens", info.tokens},
                              {"queries", info.query_positions.size()},
                              {"outputs", info.output_positions.size()}};
  for (std::size_t n = 0; n < info.layers.size(); ++n) {
    const LayerSummary& layer = info.layers[n];
    nlohmann::ordered_json row{{"layer", n},
                               {"query_heads", layer.geometry.query_heads},
                               {"kv_heads", layer.geometry.kv_heads},
                               {"head_size", layer.geometry.head_size},
                               {"value_size", layer.geometry.value_size},
                               {"model_size", layer.geometry.model_size},
                               {"type", to_string(layer.k_type)},
                               {"scale", layer.attention.scale},
                               {"softcap", layer.attention.softcap},
                               {"sliding_window", layer.attention.sliding_window},
                               {"sinks", !layer.attention.sinks.empty()},
                               {"bias", layer.has_bias},
                               {"residual_norms", layer.has_residual_norms}};
    row["output_error"] = nullptr;
    if (!checks.empty() && checks[n].output_error) {
      row["output_error"] = *checks[n].output_error;
      row["tolerance"] = checks[n].tolerance;
      row["passed"] = checks[n].passed();
    }
    json["layers"].push_back(std::move(row));
  }
  return json;
}

void run_inspect(const InspectArguments& arguments) {
  const auto backend = arguments.backend.make();
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  std::vector<std::pair<DumpInfo, std::vector<LayerCheck>>> checked;
  for (const std::string& path : arguments.dumps) {
    const DumpReader dump(path, arguments.backend.threads);
    std::vector<LayerCheck> checks;
    if (!arguments.no_check) {
      check_memory(dump.info(), {}, *backend);
      ProgressBar bar(static_cast<Index>(dump.info().layers.size()), arguments.quiet);
      checks = check_dump(dump, *backend, [&](Index layer, Index, const std::string&) {
        bar.step(fmt::format("checking layer {}", layer));
      });
    }
    if (arguments.format == "json") {
      json.push_back(to_json(dump.info(), checks));
    } else {
      print_table(dump.info(), checks, *backend);
    }
    checked.emplace_back(dump.info(), std::move(checks));
  }
  if (arguments.format == "json") {
    out_as_it_is(fmt::format("{}\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace)));
  }
  for (const auto& [info, checks] : checked) require_passed(info, checks);
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto arguments = std::make_shared<InspectArguments>();
  CLI::App* command = app.add_subcommand("inspect", "Show what a dump holds, check it, and plan the work");
  command->add_option("dumps", arguments->dumps, "dumps (HDF5)")->required();
  command->add_flag("--no-check", arguments->no_check, "do not read the tensors; only the structure is checked");
  command->add_flag("--quiet", arguments->quiet, "no progress");
  arguments->backend.add_to(*command);
  add_format(*command, arguments->format, {"table", "json"});
  command->footer(R"(
The exit code is 5 if a layer's exact output is not the one that the dump stores.

Examples:
  laprox inspect dump.h5
  laprox inspect *.h5 --no-check --format json)");
  command->callback([arguments] { run_inspect(*arguments); });
}

}  // namespace laprox::cli
