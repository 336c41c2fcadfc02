#include <fmt/format.h>

#include <cmath>

#include "laprox/error.h"
#include "laprox/scorer.h"
#include "scorers/groups.h"

namespace laprox {

namespace {

/// H2O: the tokens that received most attention from all prompt queries, and the most recent ones.
class H2O : public Scorer {
 public:
  explicit H2O(const Options& options)
      : Scorer(traits_of(options.real("recent"))), recent_(options.real("recent")), group_(group_of(options)) {
    if (recent_ >= 1 && recent_ != std::floor(recent_)) {
      throw UsageError(fmt::format(
          "h2o: option recent: expected a share of the budget below 1 or a whole number of tokens, found {}", recent_));
    }
  }

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    return reduce_groups(kernels.column_sums(), layer.geometry().group(), group_);
  }

  std::vector<double> score_sums(const Matrix& sums) const override {
    const Matrix scores = reduce_groups(sums, sums.rows(), group_);
    return {scores.data(), scores.data() + scores.size()};
  }

  std::vector<std::int32_t> evict(std::span<const double> scores, Index count) const override {
    return worst_by_score(scores, is_share(recent_) ? Pins{.last = count - heavy(count)} : traits().pins, count);
  }

  /// With a share, both zones grow with the budget: b tokens are the last b - heavy(b) and the heavy(b) best others.
  /// From b - 1 to b exactly one token joins: the one that the longer recent zone reaches, or, where that one is in
  /// already or the recent zone did not grow, the best token still out.
  Ranking rank(std::span<const double> scores) const override {
    if (!is_share(recent_)) return rank_by_score(scores, traits().pins);
    const Index context = static_cast<Index>(scores.size());
    const Ranking by_score = rank_by_score(scores, {});
    std::vector<bool> kept(scores.size());
    Ranking order;
    auto best = by_score.begin();
    for (Index budget = 1; budget <= context; ++budget) {
      const Index recent = budget - heavy(budget);
      std::int32_t next = static_cast<std::int32_t>(context - recent);
      const bool grew = recent > budget - 1 - heavy(budget - 1);
      if (!grew || kept[next]) {
        while (kept[*best]) ++best;
        next = *best;
      }
      kept[next] = true;
      order.push_back(next);
    }
    return order;
  }

 private:
  static bool is_share(double recent) { return recent < 1; }
  static ScorerTraits traits_of(double recent) {
    return {.queries = {.kind = QueryNeed::Kind::all},
            .pins = {.last = is_share(recent) ? 0 : static_cast<Index>(recent)},
            .ranks_by_score = !is_share(recent),
            .decoding = Decoding::accumulated};
  }
  /// Heavy hitters in a budget of b: floor(b * (1 - share)), guarded against 1 - 0.9 = 0.0999...
  Index heavy(Index budget) const {
    return static_cast<Index>(std::floor(static_cast<double>(budget) * (1 - recent_) + 1e-9));
  }

  double recent_;
  GroupReduction group_;
};

}  // namespace

ScorerInfo h2o_info() {
  return {
      .name = "h2o",
      .summary = "heavy hitters by accumulated attention of all prompt queries, and recent tokens",
      .paper = "H2O, 2023, arXiv 2306.14048",
      .description =
          "s[i] = sum over all prompt queries t >= i of A_h[t, i]: a plain sum, not divided by the number of queries, "
          "no pooling; query heads of a group by `gqa`. A budget b keeps the last b - floor(b * (1 - recent)) tokens "
          "and the best others. recent=0.5 is the official half and half; a whole number of tokens (recent=8) is "
          "KVCache-Factory's fixed window. One eviction after the prompt; with --schedule step, as in the official code, "
          "each decoded query's attention over the cache joins the sums, and the cache is cut after every token.",
      .default_allocator = "head",
      .needs = "all prompt queries, K",
      .options = {OptionSpec::real("recent", 0.5, 0, 1 << 20,
                                   "recent zone: share of the budget (< 1) or tokens (>= 1)"),
                  group_option("mean")},
      .make = make_scorer<H2O>,
  };
}

}  // namespace laprox
