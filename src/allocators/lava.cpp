#include <cmath>
#include <numeric>

#include "allocators/ada_split.h"
#include "allocators/rounding.h"
#include "laprox/allocator.h"

namespace laprox {

namespace {

/// -sum p ln p / ln n of a layer's scores, p their shares of the sum.
double normalized_entropy(const std::vector<std::vector<double>>& layer) {
  double sum = 0, entropy = 0, count = 0;
  for (const auto& scores : layer) sum = std::accumulate(scores.begin(), scores.end(), sum);
  for (const auto& scores : layer) {
    for (double score : scores) {
      const double p = score / (sum + 1e-16);
      entropy -= p * std::log(p + 1e-16);
      ++count;
    }
  }
  return count > 1 ? std::max(0.0, entropy / std::log(count)) : 1;
}

class LavaShares : public Allocator {
 public:
  explicit LavaShares(const Options& options)
      : Allocator({.needs_shares = true, .spends_exactly = options.text("variant") == "exact"}),
        how_{options.real("floor"), options.text("variant") == "exact"},
        variant_(options.text("variant")) {}

  double weigh(const Contest& contest, std::size_t layer) const override {
    return normalized_entropy(contest.scores[layer]) * static_cast<double>(contest.scores[layer].size());
  }

  HeadCounts allocate(const Contest& contest, const Budget& budget) const override {
    const Index share = budget.tokens_per_head() - contest.pinned;
    const std::vector<Index> totals = layer_totals(contest, share);
    HeadCounts counts;
    for (std::size_t l = 0; l < totals.size(); ++l) {
      counts.emplace_back(contest.scores[l].size(), 0);
      if (!contest.holds(l)) continue;
      const Index tokens = totals[l] / static_cast<Index>(contest.scores[l].size());
      const Index floor_of = variant_ == "code" ? budget.tokens_per_head() : tokens;
      // As published, a layer whose share exceeds its contenders keeps all, whatever the rounding of heads says.
      const bool whole = tokens > contest.per_head();
      counts.back() = whole ? std::vector<Index>(contest.scores[l].size(), contest.per_head())
                            : split_over_heads(contest.scores[l], totals[l], how_.part(floor_of), how_);
      for (Index& count : counts.back()) count += contest.pinned;
    }
    return counts;
  }

 private:
  /// Contenders that each layer keeps, all heads together: by entropy.
  std::vector<Index> layer_totals(const Contest& contest, Index share) const {
    const std::vector<double>& weights = contest.weight;
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    Index heads = 0;
    for (const auto& layer : contest.scores) heads += static_cast<Index>(layer.size());
    std::vector<double> quotas;
    std::vector<Index> caps;
    for (std::size_t l = 0; l < weights.size(); ++l) {
      const double part = sum > 0 ? weights[l] / sum : static_cast<double>(contest.scores[l].size()) / heads;
      quotas.push_back(part * static_cast<double>(share * heads));
      caps.push_back(contest.per_head() * static_cast<Index>(contest.scores[l].size()));
    }
    if (how_.exact) return whole_shares(quotas, caps, share * heads, contest);
    std::vector<Index> totals;
    for (std::size_t l = 0; l < quotas.size(); ++l) {
      const Index size = static_cast<Index>(contest.scores[l].size());
      totals.push_back(static_cast<Index>(quotas[l] / static_cast<double>(size)) * size);
    }
    return totals;
  }

  /// Whole tokens per head for every layer where all have the same number of heads, else whole tokens per layer.
  static std::vector<Index> whole_shares(std::vector<double> quotas, const std::vector<Index>& caps, Index total,
                                         const Contest& contest) {
    const Index size = static_cast<Index>(contest.scores[0].size());
    bool same = true;
    for (const auto& layer : contest.scores) same = same && static_cast<Index>(layer.size()) == size;
    if (!same) return largest_remainder(quotas, total, caps);
    for (double& quota : quotas) quota /= static_cast<double>(size);
    std::vector<Index> totals = largest_remainder(quotas, total / size, contest.per_head());
    for (Index& each : totals) each *= size;
    return totals;
  }

  AdaSplit how_;
  std::string variant_;
};

}  // namespace

AllocatorInfo lava_allocator_info() {
  return {
      .name = "lava",
      .summary = "LAVa: layers share the budget by the entropy of their scores, heads as in AdaKV",
      .paper = "LAVa, 2025, arXiv 2509.09754",
      .description =
          "B_l = e_l / sum e * (b - window) * layers with e_l the entropy of the layer's scores over ln of their "
          "number; heads then split H * B_l as in AdaKV with the floor int(B_l * floor). By default largest "
          "remainders make both steps exact. variant=rounded cuts and rounds as published; variant=code takes the "
          "floor int(b * floor) throughout, as a misspelt name makes the published code do, which overspends.",
      .scope = "model",
      .nested = false,
      .options = {OptionSpec::real("floor", 0.2, 0, 1, "share of a layer's budget that is split evenly"),
                  OptionSpec::choice("variant", "exact", {"exact", "rounded", "code"}, "how integers are found")},
      .make = make_allocator<LavaShares>,
  };
}

}  // namespace laprox
