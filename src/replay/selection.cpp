#include "replay/selection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/parallel.h"
#include "laprox/error.h"
#include "laprox/scores.h"
#include "replay/caches.h"

namespace laprox {

namespace {

std::vector<std::int32_t> kept_tokens(const Selection& selection, std::size_t budget, std::size_t layer,
                                      std::size_t head) {
  const Ranking& ranking = selection.rankings(budget)[layer][head];
  std::vector<std::int32_t> kept(ranking.begin(), ranking.begin() + selection.counts[budget][layer][head]);
  std::sort(kept.begin(), kept.end());
  return kept;
}

/// Queries that the residual stream's norm is averaged over where the scorer has no window.
constexpr Index kResidualWindow = 32;

/// How many of the last prompt queries a policy's residual norm is averaged over.
Index residual_window(const Policy& policy) {
  const Index window = policy.scorer->traits().queries.window;
  return window > 0 ? window : kResidualWindow;
}

/// The root of the mean squared norm of the residual stream at the last stored prompt queries; for an oracle, which
/// sees no other, at the judging ones.
double residual_norm(const Policy& policy, const LayerView& layer) {
  const std::vector<double>& norms = layer.residual_norms();
  const Index queries = reads_judged(policy) ? layer.queries() : std::min(residual_window(policy), layer.queries());
  require(queries > 0 && !norms.empty(), "the layer was read with the residual norms that its policies need");
  double sum = 0;
  for (auto norm = norms.end() - queries; norm != norms.end(); ++norm) sum += *norm * *norm;
  return std::sqrt(sum / static_cast<double>(queries));
}

/// The rows of q whose residual norms a policy reads. Throws UsageError where the dump has none.
DumpInfo::Rows residual_rows(const DumpInfo& dump, const Policy& policy) {
  for (std::size_t layer = 0; layer < dump.layers.size(); ++layer) {
    if (dump.layers[layer].has_residual_norms) continue;
    throw UsageError(
        fmt::format("{}: policy '{}' divides each layer's scores by the norm of its residual stream, but "
                    "/layers/{}/residual_norms is not stored; export the dump again with laprox-dump, which writes it, "
                    "or use {}+layer or {}+global:normalize=false",
                    dump.path.string(), policy.label, layer, policy.scorer_name, policy.scorer_name));
  }
  const DumpInfo::Rows stored = dump.rows_between(0, dump.context_length);
  if (stored.count() == 0 && !reads_judged(policy)) {
    throw UsageError(
        fmt::format("{}: policy '{}' needs the norm of the residual stream at the last prompt queries, but no prompt "
                    "query is stored; export the dump again with some, or use {}+global:normalize=false",
                    dump.path.string(), policy.label, policy.scorer_name));
  }
  return {std::max(stored.first, stored.last - residual_window(policy)), stored.last};
}

}  // namespace

bool reads_judged(const Policy& policy) { return policy.scorer->traits().queries.kind == QueryNeed::Kind::judged; }

DumpInfo::Rows scoring_rows(const DumpInfo& dump, const std::vector<Policy>& policies) {
  DumpInfo::Rows rows = dump.rows_between(dump.context_length, dump.context_length);
  for (const Policy& policy : policies) {
    const QueryNeed need = policy.scorer->traits().queries;
    if (policy.allocator->traits().needs_residual_norm) {
      rows.first = std::min(rows.first, residual_rows(dump, policy).first);
    }
    if (need.kind == QueryNeed::Kind::none || reads_judged(policy)) continue;
    const std::string who = "policy '" + policy.label + "'";
    const DumpInfo::Rows needed =
        need.kind == QueryNeed::Kind::all ? dump.prompt_rows(who) : dump.window_rows(need.window, who);
    rows.first = std::min(rows.first, needed.first);
  }
  return rows;
}

DumpInfo::Rows judging_rows(const DumpInfo& dump, const SweepOptions& options) {
  if (options.queries == JudgedQueries::window) {
    if (options.window > dump.context_length) {
      throw UsageError(fmt::format(
          "{}: the last {} prompt queries shall judge, but the prompt has {} tokens; ask for a --window of at most {}",
          dump.path.string(), options.window, dump.context_length, dump.context_length));
    }
    return dump.window_rows(options.window, "judging on the window");
  }
  const DumpInfo::Rows rows = dump.rows_between(dump.context_length, dump.tokens);
  if (rows.count() == 0) {
    throw UsageError(
        fmt::format("{}: no query at a position >= context_length = {} is stored, so nothing held out can judge a "
                    "policy; --queries window judges on the last prompt queries (in-sample)",
                    dump.path.string(), dump.context_length));
  }
  return rows;
}

namespace {

std::vector<Matrix> unchecked_scores(const Scorer& scorer, std::span<const Index> budgets, const LayerView& layer,
                                     ScoringKernels& kernels) {
  if (scorer.traits().depends_on_budget) return scorer.score_each(budgets, layer, kernels);
  std::vector<Matrix> scores;
  scores.push_back(scorer.score(layer, kernels));
  return scores;
}

}  // namespace

std::vector<Matrix> layer_scores(const Scorer& scorer, const std::string& who, std::span<const Index> budgets,
                                 const LayerView& layer, ScoringKernels& kernels) {
  std::vector<Matrix> scores = unchecked_scores(scorer, budgets, layer, kernels);
  for (const Matrix& each : scores) check_finite(each, layer.layer(), who);
  return scores;
}

LayerScores unchecked_score_layer(const Policy& policy, std::span<const Index> budgets, const LayerView& layer,
                                  ScoringKernels& kernels) {
  LayerScores result{unchecked_scores(*policy.scorer, budgets, layer, kernels)};
  if (policy.allocator->traits().needs_preference) result.preference = policy.scorer->preference(layer, kernels);
  if (policy.allocator->traits().needs_residual_norm) result.residual_norm = residual_norm(policy, layer);
  return result;
}

LayerScores score_layer(const Policy& policy, std::span<const Index> budgets, const LayerView& layer,
                        ScoringKernels& kernels) {
  LayerScores result = unchecked_score_layer(policy, budgets, layer, kernels);
  for (const Matrix& each : result.scores) check_finite(each, layer.layer(), policy.label);
  return result;
}

Selector::Selector(const Policy& policy, std::vector<Budget> budgets, int threads, std::vector<Index> kv_sources)
    : policy_(policy), budgets_(std::move(budgets)), threads_(threads) {
  auto shared = std::make_unique<SharedCaches>(std::move(kv_sources));
  if (shared->any()) shared_ = std::move(shared);
  selection_.orders.resize(policy.scorer->traits().depends_on_budget ? budgets_.size() : 1);
  contests_.resize(selection_.orders.size());
  ties_.resize(selection_.orders.size());
}

void Selector::add_layer(const LayerView& layer, ScoringKernels& kernels) {
  std::vector<Index> tokens;
  for (const Budget& budget : budgets_) tokens.push_back(budget.tokens_per_head());
  add_layer(score_layer(policy_, tokens, layer, kernels));
}

Selector::~Selector() = default;
Selector::Selector(Selector&&) noexcept = default;

void Selector::add_layer(const LayerScores& layer) {
  if (shared_) {
    shared_->add(layer);
  } else {
    add_cache(layer);
  }
}

void Selector::add_cache(const LayerScores& layer) {
  for (std::size_t order = 0; order < layer.scores.size(); ++order) rank_layer(order, layer.scores[order]);
  const AllocatorTraits& traits = policy_.allocator->traits();
  for (Contest& contest : contests_) {
    if (traits.needs_preference) contest.preference.push_back(layer.preference);
    if (traits.needs_residual_norm) contest.residual_norm.push_back(layer.residual_norm);
  }
}

/// Scores become rankings and, for an allocator that reads them, contenders in descending order.
void Selector::rank_layer(std::size_t order, const Matrix& scores) {
  const Index context = scores.cols(), pinned = policy_.scorer->traits().pins.count(context);
  std::vector<Ranking> rankings(static_cast<std::size_t>(scores.rows()));
  std::vector<std::vector<double>> sorted(rankings.size());
  std::vector<double> pinned_sums(rankings.size(), 0.0);
  std::vector<std::vector<Tie>> ties(rankings.size());
  parallel_for(threads_, scores.rows(), [&](Index head) {
    const auto at = static_cast<std::size_t>(head);
    rankings[at] = policy_.scorer->rank(std::span(&scores(head, 0), static_cast<std::size_t>(context)));
    if (policy_.scorer->traits().ranks_by_score) {
      const auto score = [&](Index n) { return scores(head, rankings[at][static_cast<std::size_t>(n)]); };
      for (Index first = pinned, last = pinned; first < context; first = last) {
        while (last < context && score(last) == score(first)) ++last;
        if (last - first > 1) ties[at].push_back({first, last});
      }
    }
    if (policy_.allocator->traits().ignores_scores) return;
    for (Index n = 0; n < context; ++n) {
      const double score = scores(head, rankings[at][static_cast<std::size_t>(n)]);
      if (n < pinned)
        pinned_sums[at] += score;
      else
        sorted[at].push_back(score);
    }
  });
  selection_.orders[order].push_back(std::move(rankings));
  ties_[order].push_back(std::move(ties));
  contests_[order].context_length = context;
  contests_[order].pinned = pinned;
  contests_[order].scores.push_back(std::move(sorted));
  contests_[order].pinned_sum.push_back(std::accumulate(pinned_sums.begin(), pinned_sums.end(), 0.0));
}

Selection Selector::finish() {
  if (shared_) {
    for (const LayerScores& cache : shared_->take_joint()) add_cache(cache);
  }
  for (std::size_t b = 0; b < budgets_.size(); ++b) {
    const std::size_t order = contests_.size() == 1 ? 0 : b;
    selection_.counts.push_back(split(order, budgets_[b]));
    selection_.tied.push_back(tied_entries(order, selection_.counts.back()));
  }
  if (shared_) shared_->spread(selection_);
  return std::move(selection_);
}

Index Selector::tied_entries(std::size_t order, const HeadCounts& counts) const {
  Index entries = 0;
  for (std::size_t layer = 0; layer < counts.size(); ++layer) {
    for (std::size_t head = 0; head < counts[layer].size(); ++head) {
      for (const Tie& tie : ties_[order][layer][head]) {
        if (tie.first < counts[layer][head] && counts[layer][head] < tie.last) entries += tie.last - tie.first;
      }
    }
  }
  return entries;
}

HeadCounts Selector::split(std::size_t order, const Budget& asked) const {
  const Index context = contests_[order].context_length, pinned = contests_[order].pinned;
  const Budget budget = policy_.scorer->traits().keeps_everything ? Budget(context, asked.heads()) : asked;
  const HeadCounts counts = policy_.scorer->traits().spends_exactly
                                ? policy_.allocator->allocate(contests_[order], budget)
                                : spend(order, budget);
  const bool exact = policy_.scorer->traits().spends_exactly && policy_.allocator->traits().spends_exactly;
  require(!exact || total(counts) == budget.pairs(), "an allocation adds up to its budget");
  for (const auto& layer : counts) {
    for (Index count : layer) require(count >= pinned && count <= context, "pinned <= count <= context_length");
  }
  return counts;
}

/// The counts of published code that does not keep the budget.
HeadCounts Selector::spend(std::size_t order, const Budget& budget) const {
  HeadCounts counts;
  for (const auto& rankings : selection_.orders[order]) {
    const Index layer = static_cast<Index>(counts.size());
    auto& heads = counts.emplace_back();
    for (const Ranking& ranking : rankings) {
      heads.push_back(policy_.scorer->spends(budget.tokens_per_head(), layer, ranking));
    }
  }
  return counts;
}

std::uint64_t fingerprint(const Selection& selection, std::size_t budget) {
  // A sum of well-mixed tokens (the finaliser of splitmix64) does not depend on the order of a head's tokens.
  std::uint64_t print = 0, place = 0;
  for (std::size_t layer = 0; layer < selection.counts[budget].size(); ++layer) {
    for (std::size_t head = 0; head < selection.counts[budget][layer].size(); ++head, ++place) {
      const Ranking& ranking = selection.rankings(budget)[layer][head];
      for (Index n = 0; n < selection.counts[budget][layer][head]; ++n) {
        std::uint64_t x = (place << 32 | static_cast<std::uint32_t>(ranking[static_cast<std::size_t>(n)])) + 1;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
        print += x ^ (x >> 31);
      }
    }
  }
  return print;
}

bool keep_the_same(const Selection& a, const Selection& b, std::size_t budget) {
  if (a.counts[budget] != b.counts[budget]) return false;
  for (std::size_t layer = 0; layer < a.counts[budget].size(); ++layer) {
    for (std::size_t head = 0; head < a.counts[budget][layer].size(); ++head) {
      if (kept_tokens(a, budget, layer, head) != kept_tokens(b, budget, layer, head)) return false;
    }
  }
  return true;
}

}  // namespace laprox
