#include "laprox/verify.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "arguments.h"
#include "commands.h"
#include "laprox/cost.h"
#include "laprox/error.h"
#include "laprox/report.h"
#include "laprox/version.h"
#include "output.h"
#include "progress.h"
#include "render.h"

namespace laprox::cli {

namespace {

using Json = nlohmann::ordered_json;

struct VerifyArguments {
  std::string dump, candidate, precision, format;
  std::vector<std::string> policies, budgets{"5%", "10%", "20%"};
  bool quiet = false;
  BackendArguments backend;
};

constexpr const char* kVerifyHelp = R"(
A backend is checked in every scoring primitive, the exact output, and every registered policy's scores and kept tokens.
A candidate file holds, per layer, any of scores, column_norms, column_sums, value_norms, output and kept; 'laprox score'
writes such files, and data/README.md documents them.

An error may be twice what plain programs in the same precision make on this dump. docs/verify.md has the rule in full.

Precision: --precision; else the type in which a backend reads the dump (cuda: the dump's own half type), or the file's root
attribute 'precision', or each dataset's type. A kernel that computes in bfloat16 and stores float32 needs --precision bfloat16.

The exit code is 0 if all that was checked passes, 5 if not, 3 if the candidate breaks the layout or belongs to another dump.

Examples:
  laprox verify dump.h5 --backend cpu
  laprox verify dump.h5 --backend cpu --policy laprox,h2o --budget 10%
  laprox verify dump.h5 --candidate mine.h5 --policy laprox+layer
  laprox verify dump.h5 --candidate mine.h5 --policy snapkv --precision bfloat16 --format json)";

Verification verify(const DumpReader& dump, const VerifyArguments& arguments) {
  VerifyOptions options;
  if (!arguments.precision.empty()) options.precision = parse_element_type(arguments.precision, "--precision");
  ProgressBar bar(static_cast<Index>(dump.info().layers.size()), arguments.quiet);
  const Progress progress = [&](Index layer, Index, const std::string&) { bar.step(fmt::format("layer {}", layer)); };
  options.threads = arguments.backend.threads;
  if (!arguments.policies.empty()) options.policies = parse_policies(arguments.policies);
  SweepOptions costed;
  costed.policies = options.policies;
  check_memory(dump.info(), costed, *make_reference_backend());
  if (!arguments.candidate.empty()) return verify_candidate(dump, arguments.candidate, options, progress);
  options.budgets = parse_budgets(arguments.budgets);
  return verify_backend(dump, *arguments.backend.make(), options, progress);
}

std::string name_of(const ValueCheck& check) {
  return check.policy.empty() ? check.name : check.name + " " + check.policy;
}
std::string name_of(const KeptCheck& check) { return fmt::format("kept {} at {}", check.policy, check.budget); }

std::string place(const VerdictPart& part, const std::string& row, const std::string& column) {
  std::string text = fmt::format("layer {}", part.layer);
  if (part.row >= 0) text += fmt::format(", {} {}", row, part.row);
  if (part.column >= 0) text += fmt::format(", {} {}", column, part.column);
  return text;
}

std::string short_place(const VerdictPart& part) {
  return part.layer < 0 ? "-" : fmt::format("{}/{}/{}", part.layer, part.row, part.column);
}

/// "7", "0..3" or "0, 2 and 3 more".
std::string listed(const std::set<Index>& numbers) {
  const Index first = *numbers.begin(), last = *numbers.rbegin();
  const auto count = static_cast<Index>(numbers.size());
  if (count == 1) return std::to_string(first);
  if (last - first + 1 == count) return fmt::format("{}..{}", first, last);
  std::string text;
  Index shown = 0;
  for (const Index number : numbers) {
    if (shown == 4) return fmt::format("{} and {} more", text, count - shown);
    text += (shown++ > 0 ? ", " : "") + std::to_string(number);
  }
  return text;
}

/// How the failing elements relate to what is expected, where one factor or one sign tells it.
std::string relation(const Failing& failing) {
  const double least = failing.least_ratio, most = failing.most_ratio;
  if (least > most || failing.elements < 2) return "";
  if (most - least <= 0.01 * std::abs(most)) return fmt::format("; found = {:.3g} x expected", most);
  if (most < 0) return "; all of the other sign";
  if (least > 1) return fmt::format("; all too large, {:.3g} to {:.3g} times", least, most);
  if (least > 0 && most < 1) return fmt::format("; all too small, {:.3g} to {:.3g} times", least, most);
  return "";
}

/// "12 of 4096 elements, only in layer 7: query heads 0..3, tokens 989..991; found = 2 x expected".
std::string extent(const ValueCheck& check) {
  const Failing& failing = check.failing;
  std::set<Index> layers, rows;
  for (const auto& [layer, of_layer] : failing.rows) {
    layers.insert(layer);
    rows.insert(of_layer.begin(), of_layer.end());
  }
  const std::string columns = failing.first_column == failing.last_column
                                  ? fmt::format("{} {}", check.columns, failing.first_column)
                                  : fmt::format("{}s {}..{}", check.columns, failing.first_column, failing.last_column);
  return fmt::format("{} of {} elements, in layer{} {}: {}{} {}, {}{}", failing.elements, check.elements,
                     layers.size() == 1 ? "" : "s", listed(layers), check.rows, rows.size() == 1 ? "" : "s",
                     listed(rows), columns, relation(failing));
}

/// A cosine; a row of zeros has none.
std::string shown(const VerdictPart& part, double cosine) {
  return part.excess < 0 ? "-" : fmt::format("{:.6f}", cosine);
}

void print_values(const std::vector<ValueCheck>& checks) {
  if (checks.empty()) return;
  std::vector<std::vector<std::string>> rows{
      {"values", "precision", "worst at", "error", "allowed", "ulps", "rel. L2", "allowed", "cosine", "allowed", ""}};
  for (const ValueCheck& check : checks) {
    const VerdictPart &element = check.part("element"), &norm = check.part("relative L2"),
                      &cosine = check.part("cosine");
    const bool finite = check.part("finite").passed;  // elsewhere no error is shown beside the verdict
    rows.push_back({name_of(check), std::string(to_string(check.precision)), short_place(element),
                    finite ? fmt::format("{:.1e}", element.measured) : "NaN", fmt::format("{:.1e}", element.allowed),
                    fmt::format("{:.3g}", check.worst.ulps), fmt::format("{:.1e}", norm.measured),
                    fmt::format("{:.1e}", norm.allowed), shown(cosine, cosine.measured), shown(cosine, cosine.allowed),
                    check.passed() ? "ok" : "FAIL"});
  }
  out(fmt::format("{}worst at: layer/head/token, of outputs layer/query/column; ulps: of that element\n", align(rows)));
}

void print_kept(const std::vector<KeptCheck>& checks) {
  if (checks.empty()) return;
  std::vector<std::vector<std::string>> rows{
      {"kept sets", "precision", "differ", "ties", "wrong tokens", "wrong counts", "kept", "budget", ""}};
  for (const KeptCheck& check : checks) {
    const VerdictPart& budget = check.part("budget");
    const auto pairs = [&](double count) { return budget.excess < 0 ? "-" : fmt::format("{:.0f}", count); };
    rows.push_back({fmt::format("{} at {}", check.policy, check.budget), std::string(to_string(check.precision)),
                    std::to_string(check.differences), std::to_string(check.ties),
                    fmt::format("{:.0f}", check.part("tokens").measured),
                    fmt::format("{:.0f}", check.part("counts").measured), pairs(budget.measured), pairs(budget.allowed),
                    check.passed() ? "ok" : "FAIL"});
  }
  out(fmt::format("\n{}", align(rows)));
}

/// One line per part that failed.
std::vector<std::string> failures(const ValueCheck& check) {
  std::vector<std::string> lines;
  for (const VerdictPart& part : check.parts) {
    if (part.passed) continue;
    const std::string where = place(part, check.rows, check.columns);
    if (part.name == "finite") {
      lines.push_back(fmt::format("{}: {:.0f} NaN or infinite where the reference is finite, the first at {}",
                                  name_of(check), part.measured, where));
    } else if (part.name == "element") {
      lines.push_back(
          fmt::format("{}: element: {}: found {:.6g}, expected {:.6g}: an error of {:.2g} ({:.3g} ulps), allowed "
                      "{:.2g}",
                      name_of(check), where, check.worst.found, check.worst.expected, part.measured, check.worst.ulps,
                      part.allowed));
    } else {
      lines.push_back(fmt::format("{}: {}: {}: {:.6g}, allowed {:.6g}", name_of(check), part.name, where, part.measured,
                                  part.allowed));
    }
    if (part.capped) {
      lines.back() += fmt::format(" (the cap: a plain evaluation in {} is worse here)", to_string(check.precision));
    }
  }
  if (check.failing.elements > 0) lines.push_back(fmt::format("{}: {}", name_of(check), extent(check)));
  return lines;
}

std::string distance(const VerdictPart& tokens) {
  if (std::isinf(tokens.excess)) return "one that the policy always keeps";
  return fmt::format("{:.3g} times the tolerated error of a score from the cut", tokens.excess);
}

std::vector<std::string> failures(const KeptCheck& check) {
  std::vector<std::string> lines;
  const VerdictPart &tokens = check.part("tokens"), &counts = check.part("counts"), &budget = check.part("budget");
  if (!tokens.passed) {
    lines.push_back(fmt::format("{}: {:.0f} wrong tokens; the worst, {}, is {}", name_of(check), tokens.measured,
                                place(tokens, "KV head", "token"), distance(tokens)));
  }
  if (!counts.passed) {
    lines.push_back(
        fmt::format("{}: {:.0f} heads keep a number of tokens that no error of the scores explains; the worst, {}, is "
                    "off by {:.0f}",
                    name_of(check), counts.measured, place(counts, "KV head", "token"), counts.excess));
  }
  if (!budget.passed) {
    lines.push_back(
        fmt::format("{}: {:.0f} pairs kept, the budget is {:.0f}", name_of(check), budget.measured, budget.allowed));
  }
  return lines;
}

std::vector<std::string> all_failures(const Verification& result) {
  std::vector<std::string> lines;
  const auto add = [&](const auto& check) {
    for (std::string& line : failures(check)) lines.push_back(std::move(line));
  };
  for (const ValueCheck& check : result.values) add(check);
  for (const KeptCheck& check : result.kept) add(check);
  return lines;
}

void print_table(const DumpReader& dump, const Verification& result) {
  out(fmt::format("{} against the float64 reference on {}\n", result.subject, dump.info().path.string()));
  if (!result.policy.empty()) out(fmt::format("policy {}\n", result.policy));
  out(fmt::format("\n"));
  print_values(result.values);
  print_kept(result.kept);
  if (!result.skipped.empty()) out(fmt::format("\nskipped:\n"));
  for (const SkippedCheck& skipped : result.skipped) out(fmt::format("  {}: {}\n", skipped.name, skipped.reason));
  const std::vector<std::string> lines = all_failures(result);
  if (!lines.empty()) out(fmt::format("\nfailed:\n"));
  for (const std::string& line : lines) out(fmt::format("  {}\n", line));
  out(fmt::format("\n{} checks, {} skipped: {}\n", result.values.size() + result.kept.size(), result.skipped.size(),
                  result.passed() ? "verified" : "FAILED"));
}

Json to_json(const std::vector<VerdictPart>& parts, const std::string& row, const std::string& column) {
  Json json = Json::array();
  for (const VerdictPart& part : parts) {
    Json entry{{"part", part.name}, {"measured", part.measured}, {"allowed", part.allowed}, {"passed", part.passed}};
    if (part.excess >= 0) entry["excess"] = part.excess;
    if (part.capped) entry["capped"] = true;
    if (part.layer >= 0) entry["layer"] = part.layer;
    if (part.row >= 0) entry[row] = part.row;
    if (part.column >= 0) entry[column] = part.column;
    json.push_back(std::move(entry));
  }
  return json;
}

/// The name of a row in JSON: "kv_head" for "KV head".
std::string key(const std::string& row) { return row == "KV head" ? "kv_head" : row; }

Json to_json(const Failing& failing) {
  Json json{{"elements", failing.elements}};
  if (failing.elements == 0) return json;
  json["rows_by_layer"] = Json::object();
  for (const auto& [layer, rows] : failing.rows) json["rows_by_layer"][std::to_string(layer)] = rows;
  json["columns"] = {failing.first_column, failing.last_column};
  if (failing.least_ratio <= failing.most_ratio) json["ratio"] = {failing.least_ratio, failing.most_ratio};
  return json;
}

Json to_json(const DumpReader& dump, const Verification& result) {
  Json json{{"dump", dump.info().path.string()},
            {"subject", result.subject},
            {"policy", result.policy},
            {"tool_version", version()},
            {"passed", result.passed()},
            {"values", Json::array()},
            {"kept", Json::array()},
            {"skipped", Json::array()}};
  for (const ValueCheck& check : result.values) {
    json["values"].push_back(
        {{"name", check.name},
         {"policy", check.policy},
         {"precision", to_string(check.precision)},
         {"elements", check.elements},
         {"passed", check.passed()},
         {"worst", {{"found", check.worst.found}, {"expected", check.worst.expected}, {"ulps", check.worst.ulps}}},
         {"failing", to_json(check.failing)},
         {"parts", to_json(check.parts, key(check.rows), check.columns)}});
  }
  for (const KeptCheck& check : result.kept) {
    json["kept"].push_back({{"policy", check.policy},
                            {"budget", check.budget},
                            {"precision", to_string(check.precision)},
                            {"differences", check.differences},
                            {"ties", check.ties},
                            {"passed", check.passed()},
                            {"parts", to_json(check.parts, "kv_head", "token")}});
  }
  for (const SkippedCheck& skipped : result.skipped) {
    json["skipped"].push_back({{"name", skipped.name}, {"reason", skipped.reason}});
  }
  return json;
}

void run_verify(const VerifyArguments& arguments) {
  const DumpReader dump(arguments.dump, arguments.backend.threads);
  const Verification result = verify(dump, arguments);
  if (arguments.format == "json") {
    out_as_it_is(fmt::format("{}\n", to_json(dump, result).dump(2, ' ', false, Json::error_handler_t::replace)));
  } else {
    print_table(dump, result);
  }
  if (result.passed()) return;
  const std::vector<std::string> lines = all_failures(result);
  throw VerificationError(fmt::format("{} is not what the reference computes on {}: {}{}", result.subject,
                                      dump.info().path.string(), lines.front(),
                                      lines.size() > 1 ? fmt::format(" (and {} more)", lines.size() - 1) : ""));
}

}  // namespace

void add_verify(CLI::App& app) {
  auto a = std::make_shared<VerifyArguments>();
  CLI::App* command =
      app.add_subcommand("verify", "Check a backend, or a foreign kernel's results, against the reference");
  command->add_option("dump", a->dump, "dump (HDF5)")->required();
  a->backend.add_to(*command);
  CLI::Option* candidate = command->add_option("--candidate", a->candidate, "a kernel's results on the dump (HDF5)");
  candidate->excludes(command->get_option("--backend"));
  command->add_option("--policy", a->policies,
                      "what the candidate's scores are those of (default: what the file says); of a backend, the "
                      "policies to check (default: all)");
  command->add_option("--budget", a->budgets, "budgets at which a backend's kept tokens are compared")
      ->capture_default_str()
      ->excludes(candidate);
  command->add_option("--precision", a->precision, "the arithmetic to judge by (default: see below)")
      ->check(CLI::IsMember({"float16", "bfloat16", "float32", "float64"}));
  command->add_flag("--quiet", a->quiet, "no progress");
  add_format(*command, a->format, {"table", "json"});
  command->footer(kVerifyHelp);
  command->callback([a] { run_verify(*a); });
}

}  // namespace laprox::cli
