#include "allocators/top_k.h"
#include "laprox/allocator.h"

namespace laprox {

namespace {

class Layer : public Allocator {
 public:
  Layer() : Allocator({}) {}

  HeadCounts allocate(const Contest& contest, const Budget& budget) const override {
    HeadCounts counts;
    for (std::size_t l = 0; l < contest.scores.size(); ++l) {
      const auto& layer = contest.scores[l];
      counts.emplace_back(layer.size(), 0);
      if (!contest.holds(l)) continue;
      std::vector<ScoreList> lists;
      for (const auto& scores : layer) lists.push_back({scores});
      const Index heads = static_cast<Index>(layer.size());
      counts.back() = top_k_counts(lists, heads * (budget.tokens_per_head() - contest.pinned));
      for (Index& count : counts.back()) count += contest.pinned;
    }
    return counts;
  }
};

}  // namespace

AllocatorInfo layer_allocator_info() {
  return {
      .name = "layer",
      .summary = "one top-K over all KV heads of a layer",
      .paper = "LaProx, layer-wise, 2026, arXiv 2605.07234",
      .description =
          "The layer's budget (tokens per head times its KV heads) goes to the best (head, token) entries of the "
          "layer; pinned tokens are kept first. Ties: head, then token ascending.",
      .scope = "layer",
      .options = {},
      .make = make_allocator<Layer>,
  };
}

}  // namespace laprox
