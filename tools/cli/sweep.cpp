#include "laprox/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>
#include <memory>
#include <optional>
#include <utility>

#include "arguments.h"
#include "commands.h"
#include "config.h"
#include "growing_report.h"
#include "laprox/cost.h"
#include "laprox/error.h"
#include "laprox/inspect.h"
#include "laprox/report.h"
#include "laprox/score_file.h"
#include "laprox/shares.h"
#include "output.h"
#include "progress.h"
#include "render.h"

namespace laprox::cli {

namespace {

struct SweepArguments {
  std::vector<std::string> dumps, policies, scores, budgets;
  std::string output, format, queries = "decoded", softmax = "renormalized", schedule = "once";
  std::optional<Index> window, segments;
  bool force = false, resume = false, save_kept = false, show_plan = false, no_check = false, quiet = false;
  TableOptions table;
  BackendArguments backend;
};

constexpr Index kJudgingWindow = 32;

constexpr const char* kSweepHelp = R"(
Budgets count KV pairs per KV head on average, pinned tokens (window, sinks) included: 128 tokens, 5% of the context, or 64MiB
for the whole model. Policies are scorer[+allocator][:option=value,...]; 'laprox policies' lists them.

Examples:
  laprox sweep dump.h5 --policy h2o,snapkv,laprox+layer,laprox --budget 5%,10%,20%,40% -o report.h5
  laprox sweep a.h5 b.h5 --policy snapkv --policy snapkv+ada:floor=0.5 --budget 128,256
  laprox sweep dump.h5 --policy laprox --budget 10% --queries window --softmax truncated   (with the paper's bound)
  laprox sweep dump.h5 --policy h2o,streaming,snapkv:window=32 --budget 256 --schedule every:64   (cut while decoding, too)
  laprox sweep dump.h5 --policy all --budget 5%,10%,20% -o report.h5
  laprox sweep @dumps.txt --policy h2o,laprox --budget 5% -o report.h5 --resume      (many dumps: what is done stays done)
  laprox sweep --config sweep.toml      with a section [sweep]: dumps = ["dump.h5"], policy = ["h2o", "laprox"], budget = ["5%"])";

/// The work, and the kept entries: one line a layer, one number a head.
void print_selection(const DumpReader& dump, const SweepOptions& options, const Backend& backend, Ranks& ranks) {
  const std::vector<Selection> selections = select_kept(dump, options, backend, {}, ranks);
  const auto twins = find_twins(selections, ranks);
  const Cost work = estimate_cost(dump.info(), options, backend);
  note(fmt::format("{}: {:.3g} GB of memory, {:.3g} GFLOP ({:.3g} of them by greedy elimination)",
                   dump.info().path.string(), work.total_bytes() / 1e9, work.total_flops() / 1e9,
                   work.oracle_flops / 1e9));
  for (std::size_t p = 0; p < selections.size(); ++p) {
    for (std::size_t b = 0; b < options.budgets.size(); ++b) {
      const HeadCounts& counts = selections[p].counts[b];
      note(fmt::format(
          "{}: {} at {}: {} pairs{}; kept per KV head{}", dump.info().path.string(), options.policies[p].label,
          options.budgets[b].text, total(counts, dump.info()), options.schedule.once() ? "" : " after the prompt",
          twins[p][b] < 0 ? "" : fmt::format(" (exactly what {} keeps)", options.policies[twins[p][b]].label)));
      for (std::size_t layer = 0; layer < counts.size(); ++layer) {
        std::string heads;
        for (Index count : counts[layer]) heads += fmt::format(" {:6}", count);
        note(fmt::format("  layer {:3}{}", layer, heads));
      }
    }
  }
}

/// The layers of a dump that this rank works on, where it is swept alone.
std::vector<Index> own_layers(const DumpInfo& dump, const Ranks& ranks) {
  return layers_of(share_layers({&dump}, ranks.size())[0], ranks.rank());
}

/// Policies whose scores lie in files, which belong to one dump.
void add_scores(SweepOptions& options, const SweepArguments& arguments, const DumpReader& dump, const Ranks& ranks) {
  if (!arguments.scores.empty() && arguments.dumps.size() > 1) {
    throw UsageError(fmt::format("--scores: a file of scores belongs to one dump, found {}; sweep them one at a time",
                                 arguments.dumps.size()));
  }
  for (const std::string& text : arguments.scores) {
    Policy policy = read_score_policy(text, dump, options.budgets, own_layers(dump.info(), ranks));
    for (const Policy& other : options.policies) {
      if (other.label == policy.label) {
        throw UsageError(fmt::format("--scores: the policy '{}' is given twice; rename the file", policy.label));
      }
    }
    options.policies.push_back(std::move(policy));
  }
}

/// Leaves out the policies of `all` that a dump cannot serve, and says so.
void leave_out(const DumpInfo& dump, const std::set<std::string>& of_all, SweepOptions& options) {
  std::erase_if(options.policies, [&](const Policy& policy) {
    if (!of_all.contains(policy.label)) return false;
    const auto reason = why_not(dump, policy, options);
    if (reason) note(fmt::format("laprox: skipped {}: {}", policy.label, *reason));
    return reason.has_value();
  });
}

bool has_outputs(const DumpInfo& dump) {
  return std::any_of(dump.layers.begin(), dump.layers.end(), [](const LayerSummary& l) { return l.has_output; });
}

SweepOptions options_of(const SweepArguments& arguments, std::set<std::string>& of_all) {
  SweepOptions options;
  if (!arguments.policies.empty()) options.policies = parse_policies(arguments.policies, &of_all);
  options.budgets = parse_budgets(arguments.budgets);
  options.queries = arguments.queries == "decoded" ? JudgedQueries::decoded : JudgedQueries::window;
  options.mode = arguments.softmax == "truncated" ? SoftmaxMode::truncated : SoftmaxMode::renormalized;
  options.window = arguments.window.value_or(kJudgingWindow);
  options.save_kept = arguments.save_kept;
  options.checked = !arguments.no_check;
  options.schedule = parse_schedule(arguments.schedule);
  options.segments = arguments.segments.value_or(default_segments(options.schedule));
  if (options.policies.empty() && arguments.scores.empty()) {
    throw UsageError("no policy given, for example --policy snapkv,h2o; 'laprox policies' lists all");
  }
  return options;
}

/// `words`: how the dumps were named; lists of them are inputs too.
void check_output(const SweepArguments& arguments, const std::filesystem::path& config,
                  const std::vector<std::string>& words) {
  if (arguments.resume && arguments.output.empty()) throw UsageError("--resume goes on with a report: name it with -o");
  if (arguments.resume && arguments.force) throw UsageError("--resume goes on with a report and --force begins anew");
  if (arguments.output.empty()) return;
  std::vector<std::filesystem::path> inputs(arguments.dumps.begin(), arguments.dumps.end());
  inputs.insert(inputs.end(), arguments.scores.begin(), arguments.scores.end());
  for (const std::filesystem::path& list : list_files(words)) inputs.push_back(list);
  if (!config.empty()) inputs.push_back(config);
  check_writable(arguments.output, arguments.force || arguments.resume, inputs);
}

/// A bar for work whose length is known when it begins.
Progress show_progress(bool quiet) {
  return [quiet, bar = std::shared_ptr<ProgressBar>()](Index done, Index total, const std::string& what) mutable {
    if (!bar) bar = std::make_shared<ProgressBar>(total, quiet);
    bar->at(done, what);
    if (done == total) bar.reset();  // the line is free for what comes next
  };
}

/// The dumps that the report does not hold. Where one is resumed, the first rank knows them by their hashes.
std::vector<const DumpReader*> left_to_do(const std::vector<DumpReader>& dumps, bool resume, int threads,
                                          std::optional<GrowingReport>& growing, Ranks& ranks,
                                          const Progress& progress) {
  std::vector<const DumpReader*> left;
  for (const DumpReader& dump : dumps) left.push_back(&dump);
  if (!resume) return left;
  const std::vector<std::string> hashes = content_hashes(left, threads, ranks, progress);
  std::string held;
  for (std::size_t d = 0; d < dumps.size() && growing; ++d) {
    held += growing->holds(dumps[d].info(), hashes[d]) ? 'x' : '-';
  }
  if (growing) growing->tell_others();
  held = ranks.all_gather(held)[0];
  std::size_t index = 0;
  std::erase_if(left, [&](const DumpReader*) { return held[index++] == 'x'; });
  return left;
}

/// Throws where a dump cannot serve the request, or where the layers of this rank do not fit into memory.
void check_dump_request(const DumpInfo& dump, const SweepOptions& options, const Backend& backend, const Ranks& ranks) {
  check_request(dump, options);
  DumpInfo mine = dump;
  mine.layers.clear();
  for (const Index layer : own_layers(dump, ranks)) mine.layers.push_back(dump.layers[layer]);
  check_memory(mine, options, backend);
}

/// Dumps that are worked on at a time, and those of them whose outputs are checked first.
struct Group {
  std::vector<const LayerSource*> dumps, checked;

  /// Layers that a rank works on, once for each pass over them.
  Index steps(const Ranks& ranks) const {
    const auto count = [&](const std::vector<const LayerSource*>& sources) {
      std::vector<const DumpInfo*> infos;
      for (const LayerSource* source : sources) infos.push_back(&source->info());
      Index layers = 0;
      for (const auto& rank_of : share_layers(infos, ranks.size())) {
        layers += std::count(rank_of.begin(), rank_of.end(), ranks.rank());
      }
      return layers;
    };
    return 2 * count(dumps) + count(checked);
  }
};

std::vector<Group> groups_of(const std::vector<const DumpReader*>& dumps, bool check, const Ranks& ranks) {
  std::vector<const DumpInfo*> infos;
  for (const DumpReader* dump : dumps) infos.push_back(&dump->info());
  std::vector<Group> groups;
  std::size_t next = 0;
  for (const std::size_t size : group_dumps(infos, ranks.size())) {
    Group& group = groups.emplace_back();
    for (; group.dumps.size() < size; ++next) {
      group.dumps.push_back(dumps[next]);
      if (check && has_outputs(dumps[next]->info())) group.checked.push_back(dumps[next]);
    }
  }
  return groups;
}

/// Replays what dumps store of the model's outputs, and then the policies; a dump that does not reproduce its outputs
/// is not swept. The results are on the first rank.
std::vector<DumpResult> sweep_group(const Group& group, const SweepOptions& options, const Backend& backend,
                                    Ranks& ranks, ProgressBar& bar) {
  const auto tell = [&](const DumpInfo& dump, Index layer, const std::string& what) {
    bar.step(fmt::format("{}: {} of layer {}", dump.path.filename().string(), what, layer));
  };
  if (!group.checked.empty()) {
    const auto checks = check_dumps(group.checked, backend, ranks, tell);
    for (std::size_t d = 0; d < checks.size(); ++d) require_passed(group.checked[d]->info(), checks[d]);
  }
  auto results = sweep_dumps(group.dumps, options, backend, ranks, tell);
  for (const LayerSource* dump : group.dumps) dump->rest();
  return results;
}

/// The table comes first, so that a report that cannot be written does not lose it.
void show_and_write(GrowingReport& growing, const SweepArguments& arguments) {
  const Report report = growing.finished();
  out_as_it_is(render(report, arguments.format, arguments.table));
  if (arguments.output.empty()) return;
  output_failed();  // flushes; main says so at the end
  growing.write(report, arguments.force);
  note("report: " + arguments.output);
}

/// Options that shape nothing of what was asked for.
void note_idle_options(const SweepArguments& arguments) {
  if (arguments.window && arguments.queries != "window") {
    note("laprox: --window says how many prompt queries judge with --queries window; here it does nothing");
  }
  if (arguments.save_kept && arguments.output.empty()) {
    note("laprox: --save-kept stores kept tokens in the report; without -o it does nothing");
  }
}

void run_sweep(SweepArguments arguments, const std::filesystem::path& config, Ranks& ranks) {
  const std::vector<std::string> words = std::exchange(arguments.dumps, expand_paths(arguments.dumps));
  std::set<std::string> of_all;
  SweepOptions options = options_of(arguments, of_all);
  const auto backend = arguments.backend.make(ranks);
  if (ranks.is_first()) {
    note_idle_options(arguments);
    check_output(arguments, config, words);
  }

  // Every dump is opened and every request checked before the first one is worked on.
  const std::vector<DumpReader> dumps = open_dumps(arguments.dumps, arguments.backend.threads);
  const bool quiet = arguments.quiet || !ranks.is_first();
  check_distinct(dumps, backend->threads(), ranks, show_progress(quiet));
  add_scores(options, arguments, dumps.front(), ranks);
  for (const DumpReader& dump : dumps) leave_out(dump.info(), of_all, options);
  std::optional<GrowingReport> growing;
  if (ranks.is_first()) growing.emplace(options, *backend, arguments.output, arguments.resume);
  const std::vector<const DumpReader*> left =
      left_to_do(dumps, arguments.resume, backend->threads(), growing, ranks, show_progress(quiet));
  for (const DumpReader* dump : left) check_dump_request(dump->info(), options, *backend, ranks);
  if (arguments.show_plan) {
    for (const DumpReader* dump : left) {
      print_selection(*dump, options, *backend, ranks);
      dump->rest();
    }
  }
  const std::vector<Group> groups = groups_of(left, !arguments.no_check, ranks);
  {
    Index steps = 0;
    for (const Group& group : groups) steps += group.steps(ranks);
    ProgressBar bar(steps, quiet);
    std::vector<std::future<void>> ahead;  // each is done when its group is
    for (std::size_t g = 0; g < groups.size(); ++g) {
      if (g + 1 < groups.size()) ahead.push_back(hash_ahead(groups[g + 1].dumps, ranks));
      for (const DumpResult& result : sweep_group(groups[g], options, *backend, ranks, bar)) growing->add(result);
    }
  }
  if (growing) show_and_write(*growing, arguments);
}

}  // namespace

void add_sweep(CLI::App& app, Ranks& ranks) {
  auto arguments = std::make_shared<SweepArguments>();
  CLI::App* command = app.add_subcommand("sweep", "Compare policies over budgets on dumps; write a report");
  command
      ->add_option(
          "dumps,--dumps", arguments->dumps,
          "dumps (HDF5), each is one sample; @FILE: those that the file lists, and patterns such as 'dumps/*.h5'")
      ->required();
  command->add_option("--policy", arguments->policies,
                      "policies, separated by commas or spaces; all: the whole catalogue");
  command->add_option("--scores", arguments->scores,
                      "a policy of your own: scores or kept tokens in a file (data/README.md), FILE[+allocator]");
  command->add_option("--budget", arguments->budgets, "budgets, separated by commas or spaces")->required();
  command->add_option("-o,--output", arguments->output, "report to write (HDF5)")->check(file_name());
  command
      ->add_option("--queries", arguments->queries,
                   "who judges: decoded queries (held out), or the prompt's last (in-sample)")
      ->check(CLI::IsMember({"decoded", "window"}))
      ->capture_default_str();
  command
      ->add_option(
          "--window", arguments->window,
          fmt::format("prompt queries that --queries window judges by (default: {}); not more than the prompt has",
                      kJudgingWindow))
      ->check(CLI::Range(Index{1}, Index{1} << 20));
  command->add_option("--softmax", arguments->softmax, "over the kept keys, or the exact weights without rescaling")
      ->check(CLI::IsMember({"renormalized", "truncated"}))
      ->capture_default_str();
  command
      ->add_option("--schedule", arguments->schedule,
                   "when caches are cut: once (after the prompt), then after every decoded token (step) or every N "
                   "(every:N); ',grow' behind them: budgets are shares of the tokens seen so far")
      ->capture_default_str();
  command
      ->add_option("--segments", arguments->segments,
                   fmt::format("stretches of the judging queries whose errors the report holds each (default: none, {} "
                               "under a schedule)",
                               kSegments))
      ->check(CLI::Range(Index{0}, Index{1} << 20));
  command->add_flag("--save-kept", arguments->save_kept,
                    "store the kept tokens of every cell in the report; under a schedule also when each was evicted");
  command->add_flag("--show-plan", arguments->show_plan, "print what each layer and head keeps before judging");
  command->add_flag("--no-check", arguments->no_check,
                    "do not replay the outputs that the dumps store, which says whether they are what the model did");
  command->add_flag("--force", arguments->force, "replace an existing report");
  command->add_flag("--resume", arguments->resume,
                    "go on with the report that is there: dumps that it holds are not swept again");
  command->add_flag("--quiet", arguments->quiet, "no progress");
  arguments->backend.add_to(*command);
  add_format(*command, arguments->format, {"table", "csv", "json"});
  add_table_options(*command, arguments->table);
  command->footer(kSweepHelp);
  command->callback([arguments, command, &app, &ranks] {
    if (ranks.is_first()) note_idle_table_options(*command, arguments->format);
    run_sweep(*arguments, config_file(app), ranks);
  });
}

}  // namespace laprox::cli
