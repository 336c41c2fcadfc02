#include "laprox/allocator.h"

namespace laprox {

namespace {

class Head : public Allocator {
 public:
  Head() : Allocator({.ignores_scores = true}) {}

  HeadCounts allocate(const Contest& contest, const Budget& budget) const override {
    HeadCounts counts;
    for (const auto& layer : contest.scores) counts.emplace_back(layer.size(), budget.tokens_per_head());
    return counts;
  }
};

}  // namespace

AllocatorInfo head_allocator_info() {
  return {
      .name = "head",
      .summary = "the same number of tokens for every KV head",
      .paper = "",
      .description = "Uniform: each KV head keeps its own best tokens.",
      .scope = "head",
      .options = {},
      .make = make_allocator<Head>,
  };
}

}  // namespace laprox
