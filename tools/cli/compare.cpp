#include <fmt/format.h>

#include "arguments.h"
#include "commands.h"
#include "laprox/differences.h"
#include "output.h"
#include "render.h"

namespace laprox::cli {

namespace {

struct CompareArguments {
  std::string first, second;
  TableOptions table;
};

void run_compare(const CompareArguments& arguments) {
  const Figure& shown = figure(arguments.table.metric);
  const ReportDifferences found = compare_reports(read_report(arguments.first), read_report(arguments.second), shown);
  for (const std::string& text : found.notes) note("laprox: " + text);
  std::vector<std::vector<std::string>> rows{
      {"policy", "budget", "first", "second", "difference", "relative", "largest", "dumps", ""}};
  Index changed = 0;
  for (const CellDifference& cell : found.cells) {
    const double difference = cell.second - cell.first;
    changed += cell.largest > 0 || cell.other_kept > 0 ? 1 : 0;
    rows.push_back({cell.policy, cell.budget, fmt::format("{:.6f}", cell.first), fmt::format("{:.6f}", cell.second),
                    fmt::format("{:+.2e}", difference),
                    cell.first != 0 ? fmt::format("{:+.2f} %", 100 * difference / cell.first) : "-",
                    fmt::format("{:.2e}", cell.largest), std::to_string(cell.dumps),
                    cell.other_kept > 0 ? fmt::format("other tokens kept in {}", cell.other_kept) : ""});
  }
  out(fmt::format("{}: means over the dumps that both reports have\nfirst: {}\nsecond: {}\n\n{}", shown.heading,
                  arguments.first, arguments.second, align(rows)));
  out(fmt::format("\n{} of {} cells differ\n", changed, found.cells.size()));
}

}  // namespace

void add_compare(CLI::App& app) {
  auto arguments = std::make_shared<CompareArguments>();
  CLI::App* command = app.add_subcommand("compare", "Show how two reports over the same dumps differ");
  command->add_option("first", arguments->first, "a report (HDF5)")->required();
  command->add_option("second", arguments->second, "another one")->required();
  add_metric(*command, arguments->table);
  command->footer(R"(
The same dump (by its contents), policy (with all options) and budget are compared; what only one report has is named.
largest: the largest difference of a single dump. To compare two policies of one report: laprox report R --compare A,B.

Examples:
  laprox compare before.h5 after.h5
  laprox compare cpu.h5 cuda.h5 --metric residual-error)");
  command->callback([arguments] { run_compare(*arguments); });
}

}  // namespace laprox::cli
