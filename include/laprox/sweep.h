#pragma once

#include <filesystem>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "laprox/budget.h"
#include "laprox/layer_source.h"
#include "laprox/metrics.h"
#include "laprox/policy.h"
#include "laprox/progress.h"
#include "laprox/ranks.h"
#include "laprox/schedule.h"

namespace laprox {

struct SweepOptions {
  std::vector<Policy> policies;
  std::vector<BudgetRequest> budgets;
  SoftmaxMode mode = SoftmaxMode::renormalized;
  JudgedQueries queries = JudgedQueries::decoded;
  Index window = 32;       ///< of JudgedQueries::window
  bool save_kept = false;  ///< keep the selections, and under a schedule the lifetimes, in the result
  Schedule schedule = {};  ///< when caches are cut while the model decodes
  Index segments = 0;      ///< stretches of the judging queries whose errors are reported each; 0: none
  bool checked = true;     ///< for the report: whether the outputs that dumps store were replayed first (check_dump)
};

/// What the caches of one policy at one budget held while the model decoded.
struct CacheFigures {
  Index peak = 0;       ///< the most entries that a query found in any KV head's cache, its own token included
  double mean = 0;      ///< over queries and KV heads
  Index cuts = 0;       ///< decoded tokens after which an entry was evicted
  Index evictions = 0;  ///< entries of the whole model that were evicted after the first decoded token
};

/// One policy at one budget on one dump.
struct Cell {
  HeadCounts counts;                 ///< [layer][kv_head]
  std::vector<LayerMetrics> layers;  ///< [layer]
  ModelMetrics model;
  Index tied = 0;                                      ///< see Selection::tied
  CacheFigures cache = {};                             ///< under a schedule
  std::vector<std::vector<Lifetimes>> lifetimes = {};  ///< [layer][kv_head], under a schedule with save_kept
  /// [layer]: entries of its cache that are kept although no judging query and none after the prompt sees them, because
  /// a sliding window has left them behind
  std::vector<Index> unseen = {};
  Index identical_to = -1;  ///< the first earlier policy that keeps the very same entries at this budget, or -1
};

/// What one policy keeps on one dump: at budget b the first counts[b][layer][kv_head] tokens of the ranking.
struct Selection {
  /// [order][layer][kv_head]: one order that serves every budget, or one for each budget where the scores depend on it.
  /// Over ranks, each has the rankings of its own layers, and nothing of the others.
  std::vector<std::vector<std::vector<Ranking>>> orders;
  std::vector<HeadCounts> counts;  ///< [budget]
  /// [budget]: entries that share their score with others of their head while some of these are kept and some are not,
  /// so that the order of equal scores, which is by position, decides among them.
  std::vector<Index> tied = {};
  /// [layer] [query_heads, C]: what each entry received from the prompt's queries. Of a policy that sums attention,
  /// under a schedule.
  std::vector<Matrix> attention = {};

  const std::vector<std::vector<Ranking>>& rankings(std::size_t budget) const {
    return orders.size() == 1 ? orders[0] : orders[budget];
  }
};

struct PolicyResult {
  std::vector<Cell> cells;  ///< [budget]
  Selection selection;      ///< empty unless save_kept
};

struct DumpResult {
  DumpInfo info;
  std::string content_hash;            ///< SHA-256
  std::vector<Budget> budgets;         ///< [budget]
  std::vector<PolicyResult> policies;  ///< [policy]
};

/// Throws UsageError where this dump cannot serve the request: a budget out of range or below a policy's pinned tokens,
/// or queries that are not stored. Reads no tensors.
void check_request(const DumpInfo& dump, const SweepOptions& options);

/// The part of it that select_kept and scoring need: nothing is asked of the judging queries, and no budget is needed.
void check_selection_request(const DumpInfo& dump, const SweepOptions& options);

/// Why this dump cannot serve a policy at any budget, or nothing where it can.
std::optional<std::string> why_not(const DumpInfo& dump, const Policy& policy, const SweepOptions& options);

/// What every policy keeps at every budget, without judging it: [policy]. Ranks share the layers (share_layers).
std::vector<Selection> select_kept(const LayerSource& dump, const SweepOptions& options, const Backend& backend,
                                   const Progress& progress = {}, Ranks& ranks = single_rank());

/// [policy][budget]: the first earlier policy that keeps exactly the same entries at that budget, or -1.
std::vector<std::vector<Index>> find_twins(const std::vector<Selection>& selections, Ranks& ranks = single_rank());

/// Replays one dump: which entries each policy keeps at each budget, and how far that moves each layer's output. Every
/// layer is read exactly twice. Throws UsageError (see check_request), DumpError, BackendError.
DumpResult sweep_dump(const LayerSource& dump, const SweepOptions& options, const Backend& backend,
                      const Progress& progress = {});

/// Replays some dumps at once on several ranks, which share their layers (share_layers): the results are on the first
/// rank, and nothing is on the others. They are those of sweep_dump, bit for bit. No rank reads more than its layers,
/// but that every file is hashed by one of them. Throws what sweep_dump throws, and RankFailed.
std::vector<DumpResult> sweep_dumps(const std::vector<const LayerSource*>& dumps, const SweepOptions& options,
                                    const Backend& backend, Ranks& ranks, const DumpProgress& progress = {});

/// Hashes the files of a later sweep_dumps whose turn it will be on this rank, beside other work: that one need not
/// wait for it then, and finds in memory what the system has read ahead. The dumps must outlive it.
std::future<void> hash_ahead(const std::vector<const LayerSource*>& dumps, const Ranks& ranks);

/// Calls visit(layer tensors, scores, kernels) for every layer in turn: one policy's scores [kv_heads, C], and the
/// tensors and primitives that they come from, with the queries that the policy reads. `budget` is read where the
/// scores depend on it.
using ScoreVisitor = std::function<void(const LayerTensors&, const Matrix&, ScoringKernels&)>;
void visit_scores(const LayerSource& dump, const Policy& policy, const std::optional<BudgetRequest>& budget,
                  const Backend& backend, const ScoreVisitor& visit, const Progress& progress = {});

}  // namespace laprox
