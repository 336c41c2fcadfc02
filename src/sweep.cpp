#include "laprox/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>
#include <numeric>

#include "laprox/error.h"
#include "laprox/scores.h"
#include "util/layer_stream.h"
#include "util/parallel.h"

namespace laprox {

namespace {

/// Rows of the prompt queries that these policies read.
DumpInfo::Rows scoring_rows(const DumpInfo& dump, const std::vector<Policy>& policies) {
  DumpInfo::Rows rows = dump.rows_between(dump.context_length, dump.context_length);
  for (const Policy& policy : policies) {
    const QueryNeed need = policy.scorer->queries();
    if (need.kind == QueryNeed::Kind::none) continue;
    const std::string who = "policy '" + policy.label + "'";
    const DumpInfo::Rows needed =
        need.kind == QueryNeed::Kind::all ? dump.prompt_rows(who) : dump.window_rows(need.window, who);
    rows.first = std::min(rows.first, needed.first);
  }
  return rows;
}

DumpInfo::Rows judging_rows(const DumpInfo& dump, const SweepOptions& options) {
  if (options.queries == JudgedQueries::window) return dump.window_rows(options.window, "judging on the window");
  const DumpInfo::Rows rows = dump.rows_between(dump.context_length, dump.tokens);
  if (rows.count() == 0) {
    throw UsageError(
        fmt::format("{}: no query at a position >= context_length = {} is stored, so nothing held out can "
                    "judge a policy; --queries window judges on the last prompt queries (in-sample)",
                    dump.path.string(), dump.context_length));
  }
  return rows;
}

void check_pins(const DumpInfo& dump, const Policy& policy, const BudgetRequest& request) {
  const Index tokens = resolve(request, dump).tokens_per_head();
  const Index pinned = policy.scorer->pins().count(dump.context_length);
  if (tokens < pinned && !policy.scorer->keeps_everything()) {
    throw UsageError(
        fmt::format("{}: budget {} is {} tokens per KV head, but policy '{}' always keeps {} (its window or "
                    "sinks, which count inside the budget); give it a larger budget or a smaller window",
                    dump.path.string(), request.text, tokens, policy.label, pinned));
  }
}

/// The scores of one layer become rankings, and, for an allocator that reads them, candidates in descending order.
void rank_layer(const Policy& policy, const Matrix& scores, int threads, std::vector<Ranking>& rankings,
                Candidates& candidates) {
  const Index context = scores.cols(), pinned = policy.scorer->pins().count(context);
  rankings.resize(static_cast<std::size_t>(scores.rows()));
  std::vector<std::vector<double>> sorted(rankings.size());
  std::vector<double> pinned_sums(rankings.size(), 0.0);
  parallel_for(threads, scores.rows(), [&](Index head) {
    const auto at = static_cast<std::size_t>(head);
    rankings[at] = policy.scorer->rank(std::span(&scores(head, 0), static_cast<std::size_t>(context)));
    if (policy.allocator->ignores_scores()) return;
    for (Index n = 0; n < context; ++n) {
      const double score = scores(head, rankings[at][static_cast<std::size_t>(n)]);
      if (n < pinned)
        pinned_sums[at] += score;
      else
        sorted[at].push_back(score);
    }
  });
  candidates.context_length = context;
  candidates.pinned = pinned;
  candidates.scores.push_back(std::move(sorted));
  candidates.pinned_sum.push_back(std::accumulate(pinned_sums.begin(), pinned_sums.end(), 0.0));
}

/// The integer split of every budget, with the laws of HeadCounts checked.
std::vector<HeadCounts> split_budgets(const DumpInfo& dump, const Policy& policy, const Candidates& candidates,
                                      const std::vector<BudgetRequest>& requests) {
  std::vector<HeadCounts> splits;
  for (const BudgetRequest& request : requests) {
    const Budget asked = resolve(request, dump);
    const Budget budget =
        policy.scorer->keeps_everything() ? Budget(dump.context_length, dump.total_kv_heads()) : asked;
    splits.push_back(policy.allocator->allocate(candidates, budget));
    require(total(splits.back()) == budget.pairs(), "an allocation adds up to its budget");
    for (const auto& layer : splits.back()) {
      for (Index count : layer) {
        require(count >= candidates.pinned && count <= dump.context_length, "pinned <= count <= context_length");
      }
    }
  }
  return splits;
}

}  // namespace

void check_plan_request(const DumpInfo& dump, const SweepOptions& options) {
  if (options.policies.empty()) throw UsageError("no policy given; 'laprox policies' lists all");
  for (const Policy& policy : options.policies) {
    for (const BudgetRequest& request : options.budgets) check_pins(dump, policy, request);
  }
  scoring_rows(dump, options.policies);
}

void check_request(const DumpInfo& dump, const SweepOptions& options) {
  if (options.budgets.empty()) throw UsageError("no budget given, for example --budget 5%,10%,128");
  check_plan_request(dump, options);
  judging_rows(dump, options);
}

std::vector<PolicyPlan> plan_sweep(const DumpReader& dump, const SweepOptions& options, const Backend& backend,
                                   const Progress& progress) {
  const DumpInfo& info = dump.info();
  std::vector<PolicyPlan> plans(options.policies.size());
  std::vector<Candidates> candidates(options.policies.size());
  LayerStream layers(dump, scoring_rows(info, options.policies), backend.element_type(), true);
  for (std::size_t n = 0; n < info.layers.size(); ++n) {
    const LayerTensors layer = layers.next();
    const LayerView view(layer);
    const auto kernels = backend.scoring(layer);
    for (std::size_t p = 0; p < options.policies.size(); ++p) {
      const Policy& policy = options.policies[p];
      const Matrix scores = policy.scorer->score(view, *kernels);
      check_finite(scores, layer.layer, policy.label);
      rank_layer(policy, scores, backend.threads(), plans[p].rankings.emplace_back(), candidates[p]);
    }
    if (progress) progress(layer.layer, static_cast<Index>(info.layers.size()), "scores");
  }
  for (std::size_t p = 0; p < plans.size(); ++p) {
    plans[p].counts = split_budgets(info, options.policies[p], candidates[p], options.budgets);
  }
  return plans;
}

DumpResult sweep_dump(const DumpReader& dump, const SweepOptions& options, const Backend& backend,
                      const Progress& progress) {
  const DumpInfo& info = dump.info();
  check_request(info, options);
  DumpResult result{info, {}, {}, std::vector<PolicyResult>(options.policies.size())};
  // The file is hashed while its first layers are worked on.
  auto hash = std::async(std::launch::async, [&dump] { return dump.content_hash(); });
  for (const BudgetRequest& request : options.budgets) result.budgets.push_back(resolve(request, info));

  std::vector<PolicyPlan> plans = plan_sweep(dump, options, backend, progress);
  for (std::size_t p = 0; p < plans.size(); ++p) {
    for (const HeadCounts& counts : plans[p].counts) result.policies[p].cells.push_back({counts, {}, {}});
  }

  LayerStream layers(dump, judging_rows(info, options), backend.element_type(), false);
  for (std::size_t n = 0; n < info.layers.size(); ++n) {
    const LayerTensors layer = layers.next();
    std::vector<LayerKeep> keeps;
    for (const PolicyPlan& plan : plans) {
      LayerKeep& keep = keeps.emplace_back(LayerKeep{plan.rankings[n], {}});
      for (const HeadCounts& counts : plan.counts) keep.counts.push_back(counts[n]);
    }
    const LayerEvaluation evaluation = backend.evaluate(layer, keeps, options.mode);
    for (std::size_t p = 0; p < plans.size(); ++p) {
      for (std::size_t b = 0; b < options.budgets.size(); ++b) {
        result.policies[p].cells[b].layers.push_back(
            layer_metrics(evaluation.exact, evaluation.errors[p][b], options.mode));
      }
    }
    if (progress) progress(layer.layer, static_cast<Index>(info.layers.size()), "errors");
  }
  result.content_hash = hash.get();
  for (std::size_t p = 0; p < plans.size(); ++p) {
    for (Cell& cell : result.policies[p].cells) cell.model = model_metrics(cell.layers);
    if (options.save_kept) result.policies[p].rankings = std::move(plans[p].rankings);
  }
  return result;
}

void visit_scores(const DumpReader& dump, const Policy& policy, const Backend& backend, const ScoreVisitor& visit,
                  const Progress& progress) {
  const Index count = static_cast<Index>(dump.info().layers.size());
  const DumpInfo::Rows rows = scoring_rows(dump.info(), {policy});
  for (Index n = 0; n < count; ++n) {
    // No reading ahead here: the visitor may write to another HDF5 file, and the library serves one thread at a time.
    const LayerTensors layer = dump.read_layer(n, rows, backend.element_type());
    const auto kernels = backend.scoring(layer);
    const Matrix scores = policy.scorer->score(LayerView(layer), *kernels);
    check_finite(scores, n, policy.label);
    visit(layer, scores, *kernels);
    if (progress) progress(n, count, "scores");
  }
}

}  // namespace laprox
