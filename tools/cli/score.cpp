#include <fmt/format.h>

#include "arguments.h"
#include "commands.h"
#include "laprox/cost.h"
#include "laprox/error.h"
#include "laprox/score_file.h"
#include "output.h"
#include "progress.h"

namespace laprox::cli {

namespace {

struct ScoreArguments {
  std::string dump, policy, output;
  std::vector<std::string> budgets;
  bool force = false, quiet = false;
  BackendArguments backend;
};

void run_score(const ScoreArguments& arguments) {
  const Policy policy = parse_policy(arguments.policy);
  const std::vector<BudgetRequest> budgets = parse_budgets(arguments.budgets);
  const auto backend = arguments.backend.make();
  const DumpReader dump(arguments.dump, arguments.backend.threads);
  SweepOptions costed;
  costed.policies = {policy};
  check_memory(dump.info(), costed, *backend);
  ProgressBar bar(static_cast<Index>(dump.info().layers.size()), arguments.quiet);
  write_scores(arguments.output, dump, policy, budgets, *backend, arguments.force,
               [&](Index layer, Index, const std::string&) { bar.step(fmt::format("layer {}", layer)); });
  note(fmt::format("scores: {}", arguments.output));
}

}  // namespace

void add_score(CLI::App& app) {
  auto arguments = std::make_shared<ScoreArguments>();
  CLI::App* command =
      app.add_subcommand("score", "Write one policy's scores and kept tokens, to check a kernel against");
  command->add_option("dump", arguments->dump, "dump (HDF5)")->required();
  command->add_option("--policy", arguments->policy, "the policy")->required();
  command->add_option("--budget", arguments->budgets, "budgets whose kept tokens are written too");
  command->add_option("-o,--output", arguments->output, "file to write (HDF5)")->check(file_name())->required();
  command->add_flag("--force", arguments->force, "replace an existing file of scores");
  command->add_flag("--quiet", arguments->quiet, "no progress");
  arguments->backend.add_to(*command);
  command->footer(R"(
The file holds, per layer, /layers/<i>/scores [kv_heads, C], ranking [kv_heads, C], the primitives that the score is made of,
the exact output of the decoded queries, and, with --budget, kept [budget, kv_heads, C] (1: kept). 'laprox verify' reads the
same layout; data/README.md documents it.

Example:
  laprox score dump.h5 --policy laprox+layer --budget 10% --backend reference -o scores.h5)");
  command->callback([arguments] { run_score(*arguments); });
}

}  // namespace laprox::cli
