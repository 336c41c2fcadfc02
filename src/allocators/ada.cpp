#include <cmath>

#include "laprox/allocator.h"
#include "util/rounding.h"
#include "util/top_k.h"

namespace laprox {

namespace {

class Ada : public Allocator {
 public:
  explicit Ada(const Options& options) : floor_(options.real("floor")) {}

  HeadCounts allocate(const Candidates& candidates, const Budget& budget) const override {
    const Index share = budget.tokens_per_head() - candidates.pinned;
    HeadCounts counts;
    for (const auto& layer : candidates.scores) {
      std::vector<ScoreList> lists;
      for (const auto& scores : layer) lists.push_back({scores});
      const Index total = share * static_cast<Index>(layer.size());
      const double guaranteed = std::floor(static_cast<double>(share) * floor_ + 1e-9);
      std::vector<double> quotas;
      for (Index won : top_k_counts(lists, total)) {
        quotas.push_back(static_cast<double>(won) * (1 - floor_) + guaranteed);
      }
      counts.push_back(largest_remainder(quotas, total, candidates.per_head()));
      for (Index& count : counts.back()) count += candidates.pinned;
    }
    return counts;
  }

 private:
  double floor_;
};

}  // namespace

AllocatorInfo ada_allocator_info() {
  return {
      .name = "ada",
      .summary = "AdaKV: one top-K over a layer's KV heads, blended with an equal share per head",
      .paper = "AdaKV, 2024, arXiv 2407.11550",
      .description =
          "Head g's share is won_g * (1 - floor) + int(B * floor), where B = tokens per head without the pinned ones "
          "and "
          "won_g counts its tokens among the layer's best. The official code rounds each share, so that a layer's "
          "total "
          "drifts by a few tokens; here the largest remainders make it exact (ties: lower head).",
      .options = {OptionSpec::real("floor", 0.2, 0, 1, "share of the budget that is split evenly")},
      .make = [](const Options& options) -> std::unique_ptr<Allocator> { return std::make_unique<Ada>(options); },
  };
}

}  // namespace laprox
