#include "laprox/merge.h"

#include <fmt/format.h>

#include "arguments.h"
#include "commands.h"
#include "laprox/report.h"
#include "output.h"
#include "render.h"

namespace laprox::cli {

namespace {

struct MergeArguments {
  std::vector<std::string> reports;
  std::string output;
  bool force = false, quiet = false;
};

void run_merge(const MergeArguments& arguments) {
  const std::vector<std::string> names = expand_paths(arguments.reports);
  std::vector<std::filesystem::path> inputs(names.begin(), names.end());
  for (const std::filesystem::path& list : list_files(arguments.reports)) inputs.push_back(list);
  check_writable(arguments.output, arguments.force, inputs);
  std::vector<Report> parts;
  for (const std::string& name : names) parts.push_back(read_report(name));
  const MergedReport merged = merge_reports(parts, names);
  for (const std::string& text : merged.notes) note("laprox: " + text);
  write_report(arguments.output, merged.report, arguments.force);
  if (!arguments.quiet) {
    note(fmt::format("report: {} ({} dumps, {} policies, {} budgets)", arguments.output, merged.report.dumps.size(),
                     merged.report.policies.size(), merged.report.budgets.size()));
  }
}

}  // namespace

void add_merge(CLI::App& app) {
  auto arguments = std::make_shared<MergeArguments>();
  CLI::App* command = app.add_subcommand("merge", "Make one report of several over other dumps");
  command->add_option("reports", arguments->reports, "reports (HDF5); @FILE: those that the file lists")->required();
  command->add_option("-o,--output", arguments->output, "report to write (HDF5)")->check(file_name())->required();
  command->add_flag("--force", arguments->force, "replace an existing report");
  command->add_flag("--quiet", arguments->quiet, "say nothing but what was left out");
  command->footer(R"(
The result is what one sweep over all dumps would have written. Policies and budgets that not every report has are left
out; the same dump in two reports is refused, and so are reports of other softmaxes, judging queries or schedules.
Reports may be named by patterns such as 'parts/*.h5', and in a list.

Examples:
  laprox merge a.h5 b.h5 -o all.h5
  laprox merge @reports.txt -o all.h5)");
  command->callback([arguments] { run_merge(*arguments); });
}

}  // namespace laprox::cli
