#include "laprox/inspect.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "arguments.h"
#include "commands.h"
#include "laprox/dump_reader.h"
#include "laprox/error.h"
#include "laprox/trial.h"
#include "output.h"
#include "progress.h"
#include "render.h"

namespace laprox::cli {

namespace {

struct InspectArguments {
  std::vector<std::string> dumps, policies, budgets;
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

/// The sweep that is planned: of the policies asked for, or of laprox and, where the dump has its queries, h2o.
SweepOptions planned_sweep(const DumpInfo& info, const InspectArguments& arguments) {
  SweepOptions options;
  options.budgets = parse_budgets(arguments.budgets.empty() ? std::vector<std::string>{"10%"} : arguments.budgets);
  if (info.rows_between(info.context_length, info.tokens).count() == 0) options.queries = JudgedQueries::window;
  if (arguments.policies.empty()) {
    options.policies = {parse_policy("laprox")};
    const bool all_queries = info.rows_between(0, info.context_length).count() == info.context_length;
    if (all_queries) options.policies.push_back(parse_policy("h2o"));
    return options;
  }
  std::set<std::string> of_all;
  options.policies = parse_policies(arguments.policies, &of_all);
  std::erase_if(options.policies,
                [&](const Policy& policy) { return of_all.contains(policy.label) && why_not(info, policy, options); });
  return options;
}

/// What that sweep of one dump takes.
struct Plan {
  SweepOptions options;
  Cost cost;
  /// Two passes that read, one that checks stored outputs, and the computation. Nothing where the dump was not read or
  /// is too short for the default request.
  std::optional<double> seconds;

  /// seconds_of_check: how long it took to read and check the dump, where that was done.
  Plan(const DumpInfo& info, const InspectArguments& arguments, const Backend& backend,
       std::optional<double> seconds_of_check)
      : options(planned_sweep(info, arguments)), cost(estimate_cost(info, options, backend)) {
    try {
      check_request(info, options);
      if (!seconds_of_check) return;
      const double passes = info.output_positions.empty() ? 2 : 3;
      seconds = passes * *seconds_of_check + estimate_seconds(info, options, backend);
    } catch (const UsageError&) {
      if (!arguments.policies.empty() || !arguments.budgets.empty()) throw;
    }
  }

  std::string sweep() const {
    std::vector<std::string> labels;
    for (const Policy& policy : options.policies) labels.push_back(policy.label);
    const std::string policies =
        labels.size() <= 3 ? fmt::format("{}", fmt::join(labels, ", ")) : fmt::format("{} policies", labels.size());
    return fmt::format("{} at {} budget{}", policies, options.budgets.size(), options.budgets.size() == 1 ? "" : "s");
  }

  nlohmann::ordered_json json() const {
    nlohmann::ordered_json json{{"policies", nlohmann::ordered_json::array()},
                                {"budgets", nlohmann::ordered_json::array()},
                                {"memory_bytes", cost.total_bytes()},
                                {"flops", cost.total_flops()},
                                {"seconds", nullptr}};
    for (const Policy& policy : options.policies) json["policies"].push_back(policy.label);
    for (const BudgetRequest& budget : options.budgets) json["budgets"].push_back(budget.text);
    if (seconds) json["seconds"] = *seconds;
    return json;
  }
};

void print_plan(const Plan& plan, const Backend& backend) {
  const Cost& cost = plan.cost;
  out(fmt::format(
      "plan    a sweep of {}: {} of memory, {}{}\n", plan.sweep(), scaled(cost.total_bytes(), "B"),
      scaled(cost.total_flops(), "FLOP"),
      plan.seconds ? fmt::format(", about {:.2g} s here on {} threads", *plan.seconds, backend.threads()) : ""));
  out(fmt::format("          layer {}, read ahead {}, while reading {}, logits {}, outputs {}, rankings {}\n",
                  scaled(cost.layer_bytes, "B"), scaled(cost.ahead_bytes, "B"), scaled(cost.reading_bytes, "B"),
                  scaled(cost.logit_bytes, "B"), scaled(cost.output_bytes, "B"), scaled(cost.ranking_bytes, "B")));
  out(fmt::format("          window scores {}, column sums {}, value norms {}, judging {}\n",
                  scaled(cost.scoring_flops, "FLOP"), scaled(cost.column_sum_flops, "FLOP"),
                  scaled(cost.value_norm_flops, "FLOP"), scaled(cost.judging_flops, "FLOP")));
}

void print_table(const DumpInfo& info, const std::vector<LayerCheck>& checks, const Plan& plan,
                 const Backend& backend) {
  out(fmt::format("{}\n", info.path.string()));
  out(fmt::format("model   {}\n", info.model.empty() ? "not stated" : info.model));
  out(fmt::format("source  {}\n", info.source.empty() ? "not stated" : info.source));
  out(fmt::format("tokens  {} = {} context + {} decoded\n", info.tokens, info.context_length,
                  info.tokens - info.context_length));
  out(fmt::format("queries {}; stored outputs {}\n", range_of(info.query_positions), range_of(info.output_positions)));
  print_plan(plan, backend);
  std::vector<std::vector<std::string>> rows{
      {"layer", "heads q/kv", "d", "d_v", "D", "type", "scale", "self-check", "features"}};
  for (std::size_t n = 0; n < info.layers.size(); ++n) rows.push_back(layer_row(info, n, checks));
  out(fmt::format("\n{}", align(rows)));
  if (checks.empty()) return;
  out(fmt::format("\nself-check: relative Frobenius error of the exact output against the dump's stored output;\n"));
  out(fmt::format("at most {} is explained by the rounding of the layers' types\n", tolerance_range(checks)));
}

nlohmann::ordered_json to_json(const DumpInfo& info, const std::vector<LayerCheck>& checks, const Plan& plan) {
  nlohmann::ordered_json json{{"path", info.path.string()},
                              {"model", info.model},
                              {"source", info.source},
                              {"context_length", info.context_length},
                              {"tokens", info.tokens},
                              {"queries", info.query_positions.size()},
                              {"outputs", info.output_positions.size()},
                              {"plan", plan.json()}};
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
    std::optional<double> seconds;
    if (!arguments.no_check) {
      check_memory(dump.info(), {}, *backend);
      const auto begin = std::chrono::steady_clock::now();
      ProgressBar bar(static_cast<Index>(dump.info().layers.size()), arguments.quiet);
      checks = check_dump(dump, *backend, [&](Index layer, Index, const std::string&) {
        bar.step(fmt::format("checking layer {}", layer));
      });
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    const Plan plan(dump.info(), arguments, *backend, seconds);
    if (arguments.format == "json") {
      json.push_back(to_json(dump.info(), checks, plan));
    } else {
      print_table(dump.info(), checks, plan, *backend);
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
  command->add_flag("--no-check", arguments->no_check,
                    "do not read the tensors; only the structure is checked, and the plan says no time");
  command->add_option("--policy", arguments->policies,
                      "plan a sweep of these policies (default: laprox, and h2o where the dump has its queries)");
  command->add_option("--budget", arguments->budgets, "and of these budgets (default: 10%)");
  command->add_flag("--quiet", arguments->quiet, "no progress");
  arguments->backend.add_to(*command);
  add_format(*command, arguments->format, {"table", "json"});
  command->footer(R"(
The exit code is 5 if a layer's exact output is not the one that the dump stores.

Examples:
  laprox inspect dump.h5
  laprox inspect dump.h5 --policy h2o,snapkv,laprox --budget 5%,10%,20%      (how long would that sweep take here?)
  laprox inspect *.h5 --no-check --format json)");
  command->callback([arguments] { run_inspect(*arguments); });
}

}  // namespace laprox::cli
