#include <numeric>

#include "allocators/top_k.h"
#include "laprox/allocator.h"

namespace laprox {

namespace {

class Global : public Allocator {
 public:
  explicit Global(const Options& options)
      : Allocator({.needs_residual_norm = options.text("normalize") == "residual",
                   .needs_shares = options.text("normalize") == "true"}),
        normalize_(options.text("normalize") == "true"),
        whole_row_(options.text("norm-domain") == "full") {}

  /// What the layer's scores are divided by: the size of its residual stream, or its sum of scores; a layer where that
  /// is zero stays as it is.
  double weigh(const Contest& contest, std::size_t layer) const override {
    if (traits().needs_residual_norm) return contest.residual_norm[layer] > 0 ? contest.residual_norm[layer] : 1;
    if (!normalize_) return 1;
    double sum = whole_row_ ? contest.pinned_sum[layer] : 0;
    for (const auto& scores : contest.scores[layer]) sum = std::accumulate(scores.begin(), scores.end(), sum);
    return sum > 0 ? sum : 1;
  }

  HeadCounts allocate(const Contest& contest, const Budget& budget) const override {
    std::vector<ScoreList> lists;
    Index heads = 0;
    for (std::size_t layer = 0; layer < contest.scores.size(); ++layer) {
      for (const auto& scores : contest.scores[layer]) lists.push_back({scores, contest.weight[layer]});
      heads += static_cast<Index>(contest.scores[layer].size());
    }
    const Index contenders = heads * (budget.tokens_per_head() - contest.pinned);
    const std::vector<Index> kept = top_k_counts(lists, contenders, *contest.ranks);
    HeadCounts counts;
    auto next = kept.begin();
    for (const auto& layer : contest.scores) {
      for (auto& count : counts.emplace_back(layer.size())) count = contest.pinned + *next++;
    }
    return counts;
  }

 private:
  bool normalize_, whole_row_;
};

}  // namespace

AllocatorInfo global_allocator_info() {
  return {
      .name = "global",
      .summary = "one top-K over all layers and KV heads of the model",
      .paper = "LaProx, global, 2026, arXiv 2605.07234",
      .description =
          "The model's budget goes to the best (layer, head, token) entries; pinned tokens are kept first. With "
          "normalize=true each layer's scores are divided by their sum, so that layers are comparable (not where scores "
          "may be below 0, as knorm's: the default is false there); with "
          "normalize=residual, by the size of the residual stream right after the layer's attention output was added "
          "to it: the root of the mean squared norm at the window's queries, or, for scorers without a window, at the "
          "last 32 stored prompt queries, or, for oracles, at the judging ones (the dump's residual_norms). An error matters relative to the stream that "
          "it is added to, since RMSNorm divides by that norm in every later block. No layer or head is guaranteed more than its pinned tokens. Ties: layer, head, token ascending.",
      .scope = "model",
      .options = {OptionSpec::choice("normalize", "true", {"true", "false", "residual"},
                                     "divide each layer's scores by their sum, by nothing, or by the norm of its "
                                     "residual stream"),
                  OptionSpec::choice("norm-domain", "prefix", {"prefix", "full"},
                                     "sum over the contenders, or over the pinned tokens too")},
      .make = make_allocator<Global>,
  };
}

}  // namespace laprox
