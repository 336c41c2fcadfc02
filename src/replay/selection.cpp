#include "replay/selection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/exchange.h"
#include "base/parallel.h"
#include "base/scatter.h"
#include "laprox/error.h"
#include "laprox/scores.h"
#include "replay/caches.h"

namespace laprox {

namespace {

/// Whether the first `count` tokens of two rankings are the same ones.
bool begin_with_the_same(const Ranking& a, const Ranking& b, Index count) {
  std::vector<bool> kept(a.size());
  for (Index n = 0; n < count; ++n) kept[a[n]] = true;
  return std::all_of(b.begin(), b.begin() + count, [&](std::int32_t token) { return kept[token]; });
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
    throw UsageError(fmt::format(
        "{}: policy '{}' divides each layer's scores by the norm of its residual stream, but "
        "/layers/{}/residual_norms is not stored; export the dump again with laprox-dump, which writes it "
        "(in Python: Layer(residual_norms=...)), or use another split of the budget: +layer, or +global with the option normalize=false",
        dump.path.string(), policy.label, layer));
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
        need.every() ? dump.prompt_rows(who) : dump.window_rows(need.counted(dump.context_length), who);
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
  for (const Matrix& each : scores) check_finite(each, layer, who);
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
  for (const Matrix& each : result.scores) check_finite(each, layer, policy.label);
  return result;
}

Selector::Selector(const Policy& policy, std::vector<Budget> budgets, int threads)
    : policy_(policy), budgets_(std::move(budgets)), threads_(threads) {
  selection_.orders.resize(policy.scorer->traits().depends_on_budget ? budgets_.size() : 1);
  contests_.resize(selection_.orders.size());
  ties_.resize(selection_.orders.size());
}

Selector::Selector(const Policy& policy, std::vector<Budget> budgets, int threads, const DumpInfo& dump,
                   const Share& share)
    : Selector(policy, std::move(budgets), threads) {
  ranks_ = &share.ranks;
  held_ = share.layers;
  std::vector<Index> sources;
  for (const LayerSummary& layer : dump.layers) sources.push_back(layer.kv_source);
  if (dump.shares_caches()) shared_ = std::make_unique<SharedCaches>(std::move(sources));
}

void Selector::add_layer(const LayerView& layer, ScoringKernels& kernels) {
  std::vector<Index> tokens;
  for (const Budget& budget : budgets_) tokens.push_back(budget.tokens_per_head());
  add_layer(score_layer(policy_, tokens, layer, kernels));
}

Selector::~Selector() = default;
Selector::Selector(Selector&&) noexcept = default;

void Selector::add_layer(const LayerScores& layer) {
  const std::size_t index = held_ ? static_cast<std::size_t>(held_->at(next_)) : next_;
  ++next_;
  if (shared_) {
    shared_->add(index, layer);
  } else {
    add_cache(index, layer);
  }
}

namespace {

/// Refuses what no share can be taken of: scores below 0 of a scorer that has not said that it gives any, somebody's
/// own, and sums that are beyond all numbers.
void check_shares(const Policy& policy, const std::vector<std::vector<double>>& descending) {
  double sum = 0, least = 0;
  for (const auto& scores : descending) {
    sum = std::accumulate(scores.begin(), scores.end(), sum);
    if (!scores.empty()) least = std::min(least, scores.back());
  }
  if (least >= 0 && std::isfinite(sum)) return;
  throw UsageError(fmt::format(
      "policy '{}': the allocator {} with these options takes shares of a layer's sum of scores, but {}; "
      "use +global:normalize=false, +layer, +ada or +head",
      policy.label, policy.allocator_name, least < 0 ? fmt::format("one of them is {}", least) : "it is not finite"));
}

}  // namespace

void Selector::add_cache(std::size_t cache, const LayerScores& layer) {
  own_.push_back(cache);
  for (std::size_t order = 0; order < layer.scores.size(); ++order) {
    Contest& contest = contests_[order];
    contest.preference.resize(cache + 1);
    contest.residual_norm.resize(cache + 1);
    contest.weight.resize(cache + 1);
    contest.preference[cache] = layer.preference;
    contest.residual_norm[cache] = layer.residual_norm;
    rank_cache(order, cache, layer.scores[order]);
    if (policy_.allocator->traits().needs_shares) check_shares(policy_, contest.scores[cache]);
    contest.weight[cache] = policy_.allocator->weigh(contest, cache);
  }
}

/// Scores become rankings and, for an allocator that reads them, contenders in descending order.
void Selector::rank_cache(std::size_t order, std::size_t cache, const Matrix& scores) {
  const Index context = scores.cols(), pinned = policy_.scorer->traits().pins.count(context);
  std::vector<Ranking> rankings(static_cast<std::size_t>(scores.rows()));
  std::vector<std::vector<double>> sorted(rankings.size());
  std::vector<double> pinned_sums(rankings.size(), 0.0);
  std::vector<std::vector<Tie>> ties(rankings.size());
  parallel_for(threads_, scores.rows(), [&](Index head) {
    const auto at = static_cast<std::size_t>(head);
    rankings[at] = policy_.scorer->rank(std::span(&scores(head, 0), static_cast<std::size_t>(context)));
    if (policy_.scorer->traits().ranks_by_score) {
      const auto score = [&](Index n) { return scores(head, rankings[at][n]); };
      for (Index first = pinned, last = pinned; first < context; first = last) {
        while (last < context && score(last) == score(first)) ++last;
        if (last - first > 1) ties[at].push_back({first, last});
      }
    }
    if (policy_.allocator->traits().ignores_scores) return;
    for (Index n = 0; n < context; ++n) {
      const double score = scores(head, rankings[at][n]);
      if (n < pinned)
        pinned_sums[at] += score;
      else
        sorted[at].push_back(score);
    }
  });
  Contest& contest = contests_[order];
  selection_.orders[order].resize(cache + 1);
  ties_[order].resize(cache + 1);
  contest.scores.resize(cache + 1);
  contest.pinned_sum.resize(cache + 1);
  selection_.orders[order][cache] = std::move(rankings);
  ties_[order][cache] = std::move(ties);
  contest.context_length = context;
  contest.pinned = pinned;
  contest.scores[cache] = std::move(sorted);
  contest.pinned_sum[cache] = std::accumulate(pinned_sums.begin(), pinned_sums.end(), 0.0);
}

namespace {

/// What every rank must know of a cache that one of them holds.
struct CacheFacts {
  std::size_t cache;
  Index heads, context, pinned;
  double weight, preference, residual_norm;
};

}  // namespace

/// Completes what this rank knows of the whole model.
void Selector::learn_of_others(Contest& contest) {
  std::vector<CacheFacts> mine;
  for (const std::size_t cache : own_) {
    mine.push_back({cache, static_cast<Index>(contest.scores[cache].size()), contest.context_length, contest.pinned,
                    contest.weight[cache], contest.preference[cache], contest.residual_norm[cache]});
  }
  const std::vector<CacheFacts> all = joined_over_ranks(*ranks_, mine);
  contest.scores.resize(all.size());
  contest.pinned_sum.resize(all.size());
  for (auto* values : {&contest.weight, &contest.preference, &contest.residual_norm}) values->resize(all.size());
  contest.elsewhere.assign(all.size(), true);
  contest.ranks = ranks_;
  for (const std::size_t cache : own_) contest.elsewhere[cache] = false;
  for (const CacheFacts& facts : all) {
    contest.context_length = facts.context;
    contest.pinned = facts.pinned;
    contest.scores[facts.cache].resize(static_cast<std::size_t>(facts.heads));
    contest.weight[facts.cache] = facts.weight;
    contest.preference[facts.cache] = facts.preference;
    contest.residual_norm[facts.cache] = facts.residual_norm;
  }
}

Selection Selector::finish() {
  if (shared_) {
    const std::vector<LayerScores> joint = shared_->take_joint();
    for (std::size_t cache = 0; cache < joint.size(); ++cache) {
      if (!joint[cache].scores.empty()) add_cache(cache, joint[cache]);
    }
  }
  for (std::size_t order = 0; order < contests_.size(); ++order) {
    learn_of_others(contests_[order]);
    selection_.orders[order].resize(contests_[order].scores.size());
    ties_[order].resize(contests_[order].scores.size());
  }
  for (std::size_t b = 0; b < budgets_.size(); ++b) {
    const std::size_t order = contests_.size() == 1 ? 0 : b;
    selection_.counts.push_back(split(order, spendable(order, budgets_[b])));
    selection_.tied.push_back(tied_entries(order, selection_.counts.back()));
  }
  add_up();
  for (std::size_t b = 0; b < budgets_.size(); ++b) {
    const std::size_t order = contests_.size() == 1 ? 0 : b;
    check_counts(order, selection_.counts[b], spendable(order, budgets_[b]));
  }
  if (shared_) shared_->spread(selection_);
  return std::move(selection_);
}

/// Each rank gives the counts of its own caches, and everyone has all of them.
void Selector::add_up() {
  std::vector<Index> numbers = selection_.tied;
  for (const HeadCounts& counts : selection_.counts) {
    for (std::size_t cache = 0; cache < counts.size(); ++cache) {
      const bool mine = contests_[0].holds(cache);
      for (const Index count : counts[cache]) numbers.push_back(mine ? count : 0);
    }
  }
  numbers = sums_over_ranks(*ranks_, numbers);
  auto next = numbers.begin();
  for (Index& tied : selection_.tied) tied = *next++;
  for (HeadCounts& counts : selection_.counts) {
    for (auto& heads : counts) {
      for (Index& count : heads) count = *next++;
    }
  }
}

Index Selector::tied_entries(std::size_t order, const HeadCounts& counts) const {
  Index entries = 0;
  for (const std::size_t cache : own_) {
    for (std::size_t head = 0; head < counts[cache].size(); ++head) {
      for (const Tie& tie : ties_[order][cache][head]) {
        if (tie.first < counts[cache][head] && counts[cache][head] < tie.last) entries += tie.last - tie.first;
      }
    }
  }
  return entries;
}

/// What a budget comes to for this policy.
Budget Selector::spendable(std::size_t order, const Budget& asked) const {
  return policy_.scorer->traits().keeps_everything ? Budget(contests_[order].context_length, asked.heads()) : asked;
}

HeadCounts Selector::split(std::size_t order, const Budget& budget) const {
  return policy_.scorer->traits().spends_exactly ? policy_.allocator->allocate(contests_[order], budget)
                                                 : spend(order, budget);
}

/// The counts of published code that does not keep the budget.
HeadCounts Selector::spend(std::size_t order, const Budget& budget) const {
  HeadCounts counts;
  for (std::size_t cache = 0; cache < contests_[order].scores.size(); ++cache) {
    auto& heads = counts.emplace_back(contests_[order].scores[cache].size(), 0);
    for (std::size_t head = 0; contests_[order].holds(cache) && head < heads.size(); ++head) {
      const Ranking& ranking = selection_.orders[order][cache][head];
      heads[head] = policy_.scorer->spends(budget.tokens_per_head(), static_cast<Index>(cache), ranking);
    }
  }
  return counts;
}

void Selector::check_counts(std::size_t order, const HeadCounts& counts, const Budget& budget) const {
  const Index context = contests_[order].context_length, pinned = contests_[order].pinned;
  const bool exact = policy_.scorer->traits().spends_exactly && policy_.allocator->traits().spends_exactly;
  require(!exact || total(counts) == budget.pairs(), "an allocation adds up to its budget");
  for (const auto& cache : counts) {
    for (Index count : cache) require(count >= pinned && count <= context, "pinned <= count <= context_length");
  }
}

std::uint64_t fingerprint(const Selection& selection, std::size_t budget) {
  // A sum of scattered tokens does not depend on the order of a head's tokens.
  std::uint64_t print = 0, place = 0;
  for (std::size_t layer = 0; layer < selection.counts[budget].size(); ++layer) {
    const bool elsewhere = selection.rankings(budget)[layer].empty();
    if (elsewhere) place += selection.counts[budget][layer].size();
    for (std::size_t head = 0; !elsewhere && head < selection.counts[budget][layer].size(); ++head, ++place) {
      const Ranking& ranking = selection.rankings(budget)[layer][head];
      for (Index n = 0; n < selection.counts[budget][layer][head]; ++n) {
        print += scatter(place << 32 | static_cast<std::uint32_t>(ranking[n]));
      }
    }
  }
  return print;
}

bool keep_the_same(const Selection& a, const Selection& b, std::size_t budget) {
  if (a.counts[budget] != b.counts[budget]) return false;
  for (std::size_t layer = 0; layer < a.counts[budget].size(); ++layer) {
    for (std::size_t head = 0; head < a.rankings(budget)[layer].size(); ++head) {
      const Ranking &of_a = a.rankings(budget)[layer][head], &of_b = b.rankings(budget)[layer][head];
      if (!begin_with_the_same(of_a, of_b, a.counts[budget][layer][head])) return false;
    }
  }
  return true;
}

}  // namespace laprox
