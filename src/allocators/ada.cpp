#include <algorithm>

#include "allocators/ada_split.h"
#include "allocators/top_k.h"
#include "laprox/allocator.h"

namespace laprox {

namespace {

class Ada : public Allocator {
 public:
  explicit Ada(const Options& options)
      : Allocator({.needs_shares = options.boolean("normalize"),
                   .spends_exactly = options.text("variant") != "official" || options.text("rounding") == "exact"}),
        how_{options.real("floor"), options.text("rounding") == "exact", options.boolean("normalize")},
        variant_(options.text("variant")) {}

  HeadCounts allocate(const Contest& contest, const Budget& budget) const override {
    const Index share = budget.tokens_per_head() - contest.pinned;
    HeadCounts counts;
    for (std::size_t l = 0; l < contest.scores.size(); ++l) {
      const auto& layer = contest.scores[l];
      counts.emplace_back(layer.size(), 0);
      if (!contest.holds(l)) continue;
      const Index total = share * static_cast<Index>(layer.size());
      counts.back() = variant_ == "official"
                          ? split_over_heads(layer, total, how_.part(share), how_)
                          : top_k_counts_above(layer, guaranteed(budget.tokens_per_head(), contest), total);
      for (Index& count : counts.back()) count += contest.pinned;
    }
    return counts;
  }

 private:
  /// Contenders that every head is sure of: in kvpress the window uses the guarantee up first, in the authors' later
  /// code it does not.
  Index guaranteed(Index tokens, const Contest& contest) const {
    Index sure = how_.part(tokens);
    if (variant_ == "kvpress-0.5.5" && how_.floor > 0) sure = std::max<Index>(sure, 1);
    if (variant_ != "fork") sure -= contest.pinned;
    return std::clamp<Index>(sure, 0, contest.per_head());
  }

  AdaSplit how_;
  std::string variant_;
};

}  // namespace

AllocatorInfo ada_allocator_info() {
  return {
      .name = "ada",
      .summary = "AdaKV: one top-K over a layer's KV heads, blended with an equal share per head",
      .paper = "AdaKV, 2024, arXiv 2407.11550",
      .description =
          "Head g's share is won_g * (1 - floor) + int(B * floor), where B = tokens per head without the pinned ones "
          "and won_g counts its tokens among the layer's best. The official code rounds each share half to even, so "
          "that a layer's total drifts by a few tokens (rounding=official); here the largest remainders make it exact "
          "(ties: lower head). variant=kvpress and variant=fork give every head int(b * floor) tokens outright, the "
          "window counted in or not, and the rest to the layer's best; variant=kvpress-0.5.5 is kvpress from that version "
          "on, where a floor above 0 is worth at least one token. normalize=true is the default of "
          "KVCache-Factory.",
      .scope = "layer",
      .nested = false,
      .options = {OptionSpec::real("floor", 0.2, 0, 1, "share of the budget that is split evenly"),
                  OptionSpec::choice("variant", "official", {"official", "kvpress", "kvpress-0.5.5", "fork"},
                                     "whose safeguard"),
                  OptionSpec::boolean("normalize", false, "heads compete by scores relative to their own best"),
                  OptionSpec::choice("rounding", "exact", {"exact", "official"}, "of variant=official")},
      .make = make_allocator<Ada>,
  };
}

}  // namespace laprox
