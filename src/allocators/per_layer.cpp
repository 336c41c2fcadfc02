#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "allocators/layer_shares.h"
#include "allocators/rounding.h"
#include "laprox/error.h"

namespace laprox {

namespace {

/// The shares that the user gives the layers.
class PerLayer : public Allocator {
 public:
  explicit PerLayer(const Options& options)
      : Allocator(traits_of(options)), shares_(options.numbers("shares")), whole_(traits().spends_exactly) {
    if (std::accumulate(shares_.begin(), shares_.end(), 0.0) <= 0) {
      throw UsageError("per-layer: option shares: expected a number above 0 among them, found '" +
                       options.text("shares") + "'");
    }
  }

  HeadCounts allocate(const Contest& contest, const Budget& budget) const override {
    const std::vector<double> quotas = quotas_of(contest, budget);
    if (!whole_) {
      std::vector<Index> tokens;
      for (double quota : quotas) tokens.push_back(rounded_down(quota, contest) - contest.pinned);
      return uniform_within_layers(tokens, contest);
    }
    std::vector<double> contenders;
    for (double quota : quotas) contenders.push_back(quota - static_cast<double>(contest.pinned));
    if (!same_heads_everywhere(contest)) return spread_over_heads(contenders, contest, budget);
    const Index layers = static_cast<Index>(contest.scores.size());
    return uniform_within_layers(
        largest_remainder(contenders, (budget.tokens_per_head() - contest.pinned) * layers, contest.per_head()),
        contest);
  }

 private:
  static AllocatorTraits traits_of(const Options& options) {
    const auto caches = static_cast<Index>(options.numbers("shares").size());
    return {.ignores_scores = true,
            .spends_exactly = options.text("variant") == "exact",
            .caches = caches > 1 ? caches : 0};
  }

  double share(std::size_t layer) const { return shares_[shares_.size() > 1 ? layer : 0]; }

  /// Tokens per head of each layer, in proportion to the shares, whose mean over heads is the budget. variant=exact:
  /// none below the pinned tokens or above the context, which the other layers balance.
  std::vector<double> quotas_of(const Contest& contest, const Budget& budget) const {
    const double least = static_cast<double>(whole_ ? contest.pinned : 0);
    const double most = whole_ ? static_cast<double>(contest.context_length) : HUGE_VAL;
    const auto spent = [&](double factor) {
      double sum = 0;
      for (std::size_t layer = 0; layer < contest.scores.size(); ++layer) {
        sum += std::clamp(factor * share(layer), least, most) * static_cast<double>(contest.scores[layer].size());
      }
      return sum;
    };
    double heads = 0, weights = 0;
    for (std::size_t layer = 0; layer < contest.scores.size(); ++layer) {
      heads += static_cast<double>(contest.scores[layer].size());
      weights += share(layer) * static_cast<double>(contest.scores[layer].size());
    }
    const double asked = whole_ ? static_cast<double>(budget.tokens_per_head()) : budget.asked();
    const double factor = solve(spent, asked * heads, asked * heads / weights);
    std::vector<double> quotas;
    for (std::size_t layer = 0; layer < contest.scores.size(); ++layer) {
      quotas.push_back(std::clamp(factor * share(layer), least, most));
    }
    return quotas;
  }

  /// The factor at which `spent`, which grows with it, is `total`: `plain`, unless a limit was met.
  template <class Spent>
  static double solve(const Spent& spent, double total, double plain) {
    if (std::abs(spent(plain) - total) <= 1e-9 * total) return plain;
    double low = 0, high = plain;
    for (int doublings = 0; spent(high) < total && doublings < 64; ++doublings) high *= 2;
    for (int halvings = 0; halvings < 200; ++halvings) {
      const double middle = (low + high) / 2;
      (spent(middle) < total ? low : high) = middle;
    }
    return low;
  }

  static Index rounded_down(double quota, const Contest& contest) {
    return std::clamp<Index>(static_cast<Index>(std::floor(quota + 1e-9)), std::max<Index>(1, contest.pinned),
                             contest.context_length);
  }

  std::vector<double> shares_;
  bool whole_;
};

}  // namespace

AllocatorInfo per_layer_allocator_info() {
  return {
      .name = "per-layer",
      .summary = "every layer gets the share of the budget that the user gives it",
      .paper = "kvpress PerLayerCompressionPress, 2024",
      .description =
          "shares=2/1/1 gives the first of three layers twice what the others get; a single number means all layers "
          "alike. The mean over KV heads is the budget, all heads of a layer get the same number, and the largest "
          "remainders make it exact (ties: lower layer). No layer gets less than the pinned tokens or more than the "
          "context: then the others make up for it in proportion. kvpress takes a compression ratio r for each layer "
          "and no budget: write the shares 1 - r and, as the budget, their mean. variant=kvpress rounds every layer's "
          "number down, as its scorers do, and leaves the rest.",
      .scope = "layers",
      .nested = false,
      .options = {OptionSpec::numbers("shares", "1", 0, 1e6, "of each layer that has a cache, first to last"),
                  OptionSpec::choice("variant", "exact", {"exact", "kvpress"},
                                     "whether rounding leaves tokens unspent")},
      .make = make_allocator<PerLayer>,
  };
}

}  // namespace laprox
