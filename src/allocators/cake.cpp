#include <algorithm>
#include <numeric>

#include "allocators/layer_shares.h"

namespace laprox {

namespace {

Index sum_of(const std::vector<Index>& values) { return std::accumulate(values.begin(), values.end(), Index{0}); }

/// Adds `amount` to the chosen layers: an equal whole share each, and the remainder one by one to the first of them.
template <class Chosen>
void hand_out(std::vector<Index>& tokens, Index amount, Index sign, const Chosen& chosen) {
  std::vector<std::size_t> open;
  for (std::size_t l = 0; l < tokens.size(); ++l) {
    if (chosen(tokens[l])) open.push_back(l);
  }
  const Index count = static_cast<Index>(open.size());
  for (Index n = 0; n < count; ++n) {
    tokens[open[n]] += sign * (amount / count + (n < amount % count ? 1 : 0));
  }
}

/// The published integer split of `total` tokens per head by preference, no layer above `cap`: it can fall short.
std::vector<Index> by_preference(const std::vector<double>& preference, Index total, Index cap) {
  const double sum = std::accumulate(preference.begin(), preference.end(), 0.0);
  std::vector<Index> tokens;
  Index excess = 0;
  for (double each : preference) {
    const double raw = sum > 0 ? each / sum * static_cast<double>(total)
                               : static_cast<double>(total) / static_cast<double>(preference.size());
    tokens.push_back(static_cast<Index>(raw));
    excess += std::max<Index>(0, tokens.back() - cap);
    tokens.back() = std::min(tokens.back(), cap);
  }
  const auto below = [&](Index each) { return each < cap; };
  hand_out(tokens, excess, 1, below);
  const Index missing = total - sum_of(tokens);
  if (missing > 0) hand_out(tokens, missing, 1, below);
  if (missing < 0) hand_out(tokens, -missing, -1, [](Index each) { return each > 1; });
  for (Index& each : tokens) each = std::min(each, cap);
  return tokens;
}

class CakeLayers : public Allocator {
 public:
  explicit CakeLayers(const Options& options)
      : Allocator({.needs_preference = true, .spends_exactly = options.text("variant") == "exact"}),
        variant_(options.text("variant")) {}

  HeadCounts allocate(const Contest& contest, const Budget& budget) const override {
    const Index layers = static_cast<Index>(contest.scores.size()), cap = contest.per_head();
    const Index total = (budget.tokens_per_head() - contest.pinned) * layers;
    if (!same_heads_everywhere(contest)) return spread_over_heads(contest.preference, contest, budget);
    std::vector<Index> tokens = by_preference(contest.preference, total, cap);
    if (variant_ == "cascade") tokens = cascade(contest.preference, total, cap);
    // What saturated layers could not take goes to the others, one token each, again and again.
    for (Index left = variant_ == "exact" ? total - sum_of(tokens) : 0; left > 0;) {
      for (Index& each : tokens) {
        if (left > 0 && each < cap) {
          ++each;
          --left;
        }
      }
    }
    return uniform_within_layers(tokens, contest);
  }

 private:
  /// Layer by layer, as a prefill meets them: the whole budget over the layers seen so far, and none ever grows again.
  static std::vector<Index> cascade(const std::vector<double>& preference, Index total, Index cap) {
    std::vector<Index> tokens;
    for (std::size_t seen = 1; seen <= preference.size(); ++seen) {
      tokens.push_back(cap);
      const std::vector<Index> now = by_preference({preference.begin(), preference.begin() + seen}, total, cap);
      for (std::size_t l = 0; l < seen; ++l) tokens[l] = std::min(tokens[l], now[l]);
    }
    return tokens;
  }

  std::string variant_;
};

}  // namespace

AllocatorInfo cake_allocator_info() {
  return {
      .name = "cake",
      .summary = "CAKE: layers share the budget by the scorer's layer preference, heads evenly",
      .paper = "CAKE, 2025, arXiv 2503.12491",
      .description =
          "A layer gets its preference's share of (b - window) * layers tokens per head, cut to whole tokens and to "
          "the contenders that there are; what is over or missing is spread as in the published code. Where layers "
          "saturate, that code falls short of the budget (variant=published); by default what is left goes to the "
          "others. variant=cascade takes the smallest share that a layer had while the prefill met one layer after "
          "the other. Where layers have different numbers of KV heads, shares are weighed by them.",
      .scope = "layers",
      .nested = false,
      .options = {OptionSpec::choice("variant", "exact", {"exact", "published", "cascade"}, "how integers are found")},
      .make = make_allocator<CakeLayers>,
  };
}

}  // namespace laprox
