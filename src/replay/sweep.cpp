#include "laprox/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <future>
#include <map>

#include "dump/layer_stream.h"
#include "dump/queries.h"
#include "laprox/error.h"
#include "replay/decoding.h"
#include "replay/judgement.h"
#include "replay/selection.h"
#include "replay/unseen.h"

namespace laprox {

namespace {

std::vector<Budget> resolve_budgets(const DumpInfo& dump, const SweepOptions& options) {
  std::vector<Budget> budgets;
  for (const BudgetRequest& request : options.budgets) {
    const DecodingBudget budget(request, dump, options.schedule);
    const Index tokens = budget.tokens(dump.context_length);
    budgets.push_back(tokens <= dump.context_length ? resolve(request, dump) : Budget(tokens, dump.total_kv_heads()));
  }
  return budgets;
}

/// What the cut after the prompt may keep: a schedule's budget can be larger than the prompt.
std::vector<Budget> prompt_budgets(const DumpInfo& dump, const SweepOptions& options) {
  std::vector<Budget> budgets;
  for (const Budget& budget : resolve_budgets(dump, options)) {
    const bool fits = budget.tokens_per_head() <= dump.context_length;
    budgets.push_back(fits ? budget : Budget(dump.context_length, budget.heads()));
  }
  return budgets;
}

void check_pins(const DumpInfo& dump, const Policy& policy, const BudgetRequest& request, const Budget& budget) {
  const Index tokens = budget.tokens_per_head();
  const Index pinned = policy.scorer->traits().pins.count(dump.context_length);
  if (tokens < pinned && !policy.scorer->traits().keeps_everything) {
    throw UsageError(
        fmt::format("{}: budget {} is {} tokens per KV head, but policy '{}' always keeps {} (its window or sinks, "
                    "which count inside the budget); give it a larger budget or a smaller window",
                    dump.path.string(), request.text, tokens, policy.label, pinned));
  }
}

void check_context(const DumpInfo& dump, const Policy& policy) {
  if (dump.context_length <= policy.scorer->traits().longest_context) return;
  throw UsageError(
      fmt::format("{}: the context has {} tokens, and policy '{}' takes at most {}, because its work grows with their "
                  "square; leave it out, or make a dump of a shorter prompt",
                  dump.path.string(), dump.context_length, policy.label, policy.scorer->traits().longest_context));
}

/// Layers that read one cache score it jointly, by the mean, which places in an order do not have.
void check_joint(const DumpInfo& dump, const Policy& policy) {
  if (!dump.shares_caches() || !policy.scorer->traits().scores_are_places) return;
  throw UsageError(
      fmt::format("{}: some layers read one KV cache, whose entries are kept by the mean of the layers' scores; the "
                  "scores of policy '{}' are places in an order and have no mean; leave it out",
                  dump.path.string(), policy.label));
}

void check_caches(const DumpInfo& dump, const Policy& policy) {
  const Index wanted = policy.allocator->traits().caches;
  const Index found =
      std::count_if(dump.layers.begin(), dump.layers.end(), [](const auto& l) { return l.kv_source < 0; });
  if (wanted == 0 || wanted == found) return;
  throw UsageError(
      fmt::format("{}: policy '{}' has shares for {} layers, but {} layers of the dump have a cache; give each its "
                  "share, or one share for all",
                  dump.path.string(), policy.label, wanted, found));
}

std::vector<Index> kv_sources(const DumpInfo& dump) {
  std::vector<Index> sources;
  for (const LayerSummary& layer : dump.layers) sources.push_back(layer.kv_source);
  return sources;
}

void check_rope(const DumpInfo& dump, const Policy& policy) {
  if (!policy.scorer->traits().undoes_rope) return;
  for (std::size_t layer = 0; layer < dump.layers.size(); ++layer) {
    if (!dump.layers[layer].attention.rope_inv_freq.empty()) continue;
    throw UsageError(
        fmt::format("{}: policy '{}' reads queries as they were before RoPE, but /layers/{}/rope_inv_freq is not "
                    "stored; add it (data/README.md says how), or leave this policy out",
                    dump.path.string(), policy.label, layer));
  }
}

/// which rows of q the selection reads: those of the prompt, and, for oracles, those that judge.
struct SelectionRows {
  SelectionRows(const DumpInfo& dump, const SweepOptions& options)
      : oracles(std::any_of(options.policies.begin(), options.policies.end(), reads_judged)),
        scoring(scoring_rows(dump, options.policies)),
        read(scoring) {
    if (!oracles) return;
    judging = judging_rows(dump, options);
    read = {std::min(scoring.first, judging.first), std::max(scoring.last, judging.last)};
  }
  bool oracles;
  DumpInfo::Rows scoring, judging, read;
};

void add_layer(std::vector<Selector>& selectors, const LayerView& layer, ScoringKernels& kernels, bool judged) {
  for (const Selector& selector : selectors) {
    if (const Index distance = selector.policy().scorer->traits().far_distance) kernels.expect_far_energies(distance);
  }
  for (Selector& selector : selectors) {
    if (reads_judged(selector.policy()) == judged) selector.add_layer(layer, kernels);
  }
}

/// Whether a policy goes on summing the attention that its entries received from the prompt.
bool sums_attention(const SweepOptions& options, std::size_t policy) {
  return !options.schedule.once() && options.policies[policy].scorer->traits().decoding == Decoding::accumulated;
}

}  // namespace

void check_selection_request(const DumpInfo& dump, const SweepOptions& options) {
  if (options.policies.empty()) throw UsageError("no policy given; 'laprox policies' lists all");
  check_schedule(dump, options);
  const std::vector<Budget> budgets = prompt_budgets(dump, options);
  for (const Policy& policy : options.policies) {
    check_context(dump, policy);
    check_rope(dump, policy);
    check_joint(dump, policy);
    check_caches(dump, policy);
    check_schedule(dump, policy, options);
    for (std::size_t b = 0; b < budgets.size(); ++b) check_pins(dump, policy, options.budgets[b], budgets[b]);
  }
  scoring_rows(dump, options.policies);
  if (std::any_of(options.policies.begin(), options.policies.end(), reads_judged)) judging_rows(dump, options);
}

void check_request(const DumpInfo& dump, const SweepOptions& options) {
  if (options.budgets.empty()) throw UsageError("no budget given, for example --budget 5%,10%,128");
  check_selection_request(dump, options);
  judging_rows(dump, options);
}

std::optional<std::string> why_not(const DumpInfo& dump, const Policy& policy, const SweepOptions& options) {
  SweepOptions alone = options;
  alone.policies = {policy};
  alone.budgets.clear();
  try {
    check_selection_request(dump, alone);
  } catch (const UsageError& error) {
    return error.what();
  }
  return std::nullopt;
}

std::vector<std::vector<Index>> find_twins(const std::vector<Selection>& selections) {
  std::vector<std::vector<Index>> twins;
  std::vector<std::vector<std::uint64_t>> prints;
  for (const Selection& selection : selections) {
    auto& print = prints.emplace_back();
    for (std::size_t b = 0; b < selection.counts.size(); ++b) print.push_back(fingerprint(selection, b));
    auto& twin = twins.emplace_back(selection.counts.size(), -1);
    for (std::size_t b = 0; b < selection.counts.size(); ++b) {
      for (std::size_t other = 0; other + 1 < twins.size() && twin[b] < 0; ++other) {
        if (prints[other][b] == print[b] && keep_the_same(selections[other], selection, b))
          twin[b] = static_cast<Index>(other);
      }
    }
  }
  return twins;
}

std::vector<Selection> select_kept(const LayerSource& dump, const SweepOptions& options, const Backend& backend,
                                   const Progress& progress) {
  const DumpInfo& info = dump.info();
  const std::vector<Budget> budgets = prompt_budgets(info, options);
  std::vector<Selector> selectors;
  for (const Policy& policy : options.policies)
    selectors.emplace_back(policy, budgets, backend.threads(), kv_sources(info));
  const SelectionRows rows(info, options);
  std::vector<std::vector<Matrix>> attention(selectors.size());  // [policy][layer], see Selection::attention
  LayerStream layers(dump, rows.read, backend, true);
  for (std::size_t n = 0; n < info.layers.size(); ++n) {
    LayerTensors layer = layers.next();
    QueryBlock judged;
    if (rows.oracles) judged = copy_queries(layer, rows.judging.first - rows.read.first, rows.judging.count());
    if (rows.oracles)
      set_queries(layer, copy_queries(layer, rows.scoring.first - rows.read.first, rows.scoring.count()));
    const auto kernels = backend.scoring(layer);
    add_layer(selectors, LayerView(layer), *kernels, false);
    for (std::size_t p = 0; p < selectors.size(); ++p) {
      if (sums_attention(options, p)) attention[p].push_back(kernels->column_sums());
    }
    if (rows.oracles) {
      set_queries(layer, std::move(judged));
      add_layer(selectors, LayerView::of_judged(layer), *backend.scoring(layer), true);
    }
    if (progress) progress(layer.layer, static_cast<Index>(info.layers.size()), "scores");
  }
  std::vector<Selection> selections;
  for (std::size_t p = 0; p < selectors.size(); ++p) {
    selections.push_back(selectors[p].finish());
    selections.back().attention = std::move(attention[p]);
  }
  return selections;
}

DumpResult sweep_dump(const LayerSource& dump, const SweepOptions& options, const Backend& backend,
                      const Progress& progress) {
  const DumpInfo& info = dump.info();
  check_request(info, options);
  if (!options.schedule.once() && !backend.replays_decoding()) {
    throw UsageError(fmt::format("--schedule {}: the backend {} does not replay decoding; use cpu or reference",
                                 to_string(options.schedule), backend.name()));
  }
  DumpResult result{info, {}, {}, std::vector<PolicyResult>(options.policies.size())};
  // The file is hashed while its first layers are worked on.
  auto hash = std::async(std::launch::async, [&dump] { return dump.content_hash(); });
  result.budgets = resolve_budgets(info, options);

  std::vector<Selection> selections = select_kept(dump, options, backend, progress);
  // Under a schedule the Judgement compares what caches held, not this cut alone.
  const auto twins = options.schedule.once() ? find_twins(selections) : std::vector<std::vector<Index>>();
  const std::vector<Index> unseen = unseen_tokens(info, options);
  for (std::size_t p = 0; p < selections.size(); ++p) {
    for (std::size_t b = 0; b < selections[p].counts.size(); ++b) {
      Cell& cell = result.policies[p].cells.emplace_back();
      cell.counts = selections[p].counts[b];
      cell.tied = selections[p].tied[b];
      cell.unseen = unseen_entries(selections[p], b, unseen);
      if (!twins.empty()) cell.identical_to = twins[p][b];
    }
  }

  Judgement judgement(info, options, backend, selections, result.policies);
  LayerStream layers(dump, judgement.rows(), backend, false);
  for (std::size_t n = 0; n < info.layers.size(); ++n) {
    judgement.add_layer(layers.next());
    if (progress) progress(static_cast<Index>(n), static_cast<Index>(info.layers.size()), "errors");
  }
  judgement.finish();
  result.content_hash = hash.get();
  for (std::size_t p = 0; p < selections.size(); ++p) {
    if (options.save_kept) result.policies[p].selection = std::move(selections[p]);
  }
  return result;
}

void visit_scores(const LayerSource& dump, const Policy& policy, const std::optional<BudgetRequest>& budget,
                  const Backend& backend, const ScoreVisitor& visit, const Progress& progress) {
  const DumpInfo& info = dump.info();
  const Index count = static_cast<Index>(info.layers.size());
  const Index tokens = budget ? resolve(*budget, info).tokens_per_head() : 0;
  const bool judged = reads_judged(policy);
  const DumpInfo::Rows rows = judged ? judging_rows(info, {}) : scoring_rows(info, {policy});
  for (Index n = 0; n < count; ++n) {
    // No reading ahead here: the visitor may write to another HDF5 file, and the library serves one thread at a time.
    const LayerTensors layer = dump.read_layer(n, rows, tensor_type(backend, info.layers[static_cast<std::size_t>(n)]));
    const LayerView view = judged ? LayerView::of_judged(layer) : LayerView(layer);
    const auto kernels = backend.scoring(layer);
    visit(layer, layer_scores(*policy.scorer, policy.label, {&tokens, 1}, view, *kernels).at(0), *kernels);
    if (progress) progress(n, count, "scores");
  }
}

}  // namespace laprox
