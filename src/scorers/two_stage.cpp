#include "scorers/two_stage.h"

#include <algorithm>
#include <cmath>

#include "allocators/top_k.h"
#include "scorers/groups.h"

namespace laprox {

namespace {

/// The tokens that compete, [first, last) of the context, ranked by both scores of one head.
struct Contenders {
  Index first, last;
  std::vector<Index> by_base = {}, by_critical = {};

  Contenders(const Pins& pins, Index context)
      : first(std::min(pins.first, context)), last(std::max(first, context - pins.last)) {}

  void rank(const CriticalScores& scores, Index head) {
    by_base = ranked(scores.base, head);
    by_critical = ranked(scores.critical, head);
  }
  std::vector<Index> ranked(const Matrix& scores, Index head) const {
    if (first == last) return {};
    std::vector<Index> tokens;
    const Ranking ranking = rank_by_score({&scores(head, first), static_cast<std::size_t>(last - first)}, {});
    for (std::int32_t token : ranking) tokens.push_back(first + token);
    return tokens;
  }
};

/// The best `first` of the tokens by `base`, then the best others by `critical`, `count` in all.
std::vector<Index> fill(const Contenders& heads, Index first, Index count, Index context) {
  std::vector<Index> kept(heads.by_base.begin(), heads.by_base.begin() + first);
  std::vector<bool> taken(static_cast<std::size_t>(context));
  for (Index token : kept) taken[token] = true;
  for (Index token : heads.by_critical) {
    if (static_cast<Index>(kept.size()) == count) break;
    if (!taken[token]) kept.push_back(token);
  }
  return kept;
}

}  // namespace

void TwoStages::add_options(std::vector<OptionSpec>& options, bool safeguard) {
  if (safeguard) {
    options.push_back(OptionSpec::real("safeguard", 0.2, 0, 1, "share of an equal budget that every head is sure of"));
  }
  options.push_back(OptionSpec::real("first-stage", 0.5, 0, 1, "share of the tokens that the first stage picks"));
  options.push_back(OptionSpec::real("epsilon", 1e-4, 0, 1, "added to the attention in the second stage"));
}

TwoStages TwoStages::of(const Options& options, bool at_least_one) {
  return {options.real("epsilon"), options.real("first-stage"), at_least_one};
}

Index TwoStages::first(Index count) const {
  const auto part = static_cast<Index>(std::floor(static_cast<double>(count) * share));
  return at_least_one && share > 0 && count > 0 ? std::max<Index>(1, part) : part;
}

CriticalScores TwoStages::scores(Matrix base, Index group, ScoringKernels& kernels) const {
  const Matrix norms = reduce_groups(kernels.value_l1_norms(), group, GroupReduction::mean);
  Matrix critical = (base.array() + epsilon) * norms.array();
  return {std::move(base), std::move(critical)};
}

Matrix TwoStages::places(const CriticalScores& scores, const Pins& pins) const {
  const Index context = scores.base.cols();
  Contenders heads(pins, context);
  const Index contenders = heads.last - heads.first;
  Matrix places = Matrix::Zero(scores.base.rows(), context);
  for (Index head = 0; head < places.rows(); ++head) {
    heads.rank(scores, head);
    std::vector<bool> taken(static_cast<std::size_t>(context));
    std::size_t next_critical = 0;
    // The token that joins at each budget: where the first stage grows, its next one, unless the second stage had it
    // before; else the best one still out by the second stage's score.
    for (Index budget = 1; budget <= contenders; ++budget) {
      Index token = heads.by_base[static_cast<std::size_t>(std::max<Index>(first(budget), 1) - 1)];
      if (first(budget) == first(budget - 1) || taken[token]) {
        while (taken[heads.by_critical[next_critical]]) ++next_critical;
        token = heads.by_critical[next_critical];
      }
      taken[token] = true;
      places(head, token) = static_cast<double>(contenders + 1 - budget);
    }
  }
  return places;
}

std::vector<Matrix> TwoStages::marks(const CriticalScores& scores, const Pins& pins, std::span<const Index> budgets,
                                     double safeguard) const {
  const Index context = scores.base.cols(), heads = scores.base.rows(), pinned = pins.count(context);
  std::vector<Contenders> contenders(static_cast<std::size_t>(heads), Contenders(pins, context));
  std::vector<std::vector<double>> sorted;
  for (Index head = 0; head < heads; ++head) {
    Contenders& own = contenders[head];
    own.rank(scores, head);
    for (auto& list = sorted.emplace_back(); Index token : own.by_base) list.push_back(scores.base(head, token));
  }
  std::vector<Matrix> kept;
  for (Index tokens : budgets) {
    const Index equal = tokens - pinned;
    Index safe = static_cast<Index>(std::floor(static_cast<double>(equal) * safeguard));
    if (at_least_one && safeguard > 0 && equal > 0) safe = std::max<Index>(1, safe);
    const std::vector<Index> won = top_k_counts_above(sorted, safe, equal * heads);
    Matrix& marks = kept.emplace_back(Matrix::Zero(heads, context));
    for (Index head = 0; head < heads; ++head) {
      const auto at = static_cast<std::size_t>(head);
      const auto part = static_cast<Index>(std::floor(static_cast<double>(won[at]) * share));
      for (Index token : fill(contenders[at], std::max(safe, part), won[at], context)) marks(head, token) = 1;
    }
  }
  return kept;
}

}  // namespace laprox
