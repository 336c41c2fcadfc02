#include <algorithm>
#include <cmath>

#include "allocators/layer_shares.h"

namespace laprox {

namespace {

class Pyramid : public Allocator {
 public:
  explicit Pyramid(const Options& options)
      : Allocator({.spends_exactly = options.text("variant") == "exact"}),
        beta_(options.real("beta")),
        variant_(options.text("variant")) {}

  HeadCounts allocate(const Contest& contest, const Budget& budget) const override {
    const Index layers = static_cast<Index>(contest.scores.size());
    const Index share = budget.tokens_per_head() - contest.pinned, most = contest.per_head();
    if (variant_ == "kvpress") return uniform_within_layers(kvpress(contest, budget), contest);
    if (variant_ != "exact") return uniform_within_layers(whole_steps(share, most, layers, contest), contest);
    const Ends ends = ends_of(static_cast<double>(share), static_cast<double>(most));
    std::vector<double> line;
    for (Index l = 0; l < layers; ++l) line.push_back(ends.at(l, layers));
    if (!same_heads_everywhere(contest)) return spread_over_heads(line, contest, budget);
    std::vector<Index> tokens;
    // Layers l and L-1-l have twice the share together. Rounding one half up and the other half down keeps that.
    for (Index l = 0; l < layers; ++l) {
      const double x = line[l];
      tokens.push_back(2 * l < layers ? static_cast<Index>(std::floor(x + 0.5 + 1e-9))
                                      : 2 * share - tokens[layers - 1 - l]);
    }
    if (layers % 2 == 1) tokens[layers / 2] = share;
    return uniform_within_layers(tokens, contest);
  }

 private:
  struct Ends {
    double most, least;
    double at(Index layer, Index layers) const {
      if (layers == 1) return (most + least) / 2;
      return most - static_cast<double>(layer) * (most - least) / static_cast<double>(layers - 1);
    }
  };
  /// The first and the last layer's tokens, whose mean is `share`; the first one's at most `cap`.
  Ends ends_of(double share, double cap) const {
    const double most = 2 * share - share / beta_;
    return most >= cap ? Ends{cap, 2 * share - cap} : Ends{most, share / beta_};
  }

  /// KVCache-Factory's and AdaKV's integer steps, which spend more than the budget.
  std::vector<Index> whole_steps(Index share, Index cap, Index layers, const Contest& contest) const {
    Index least = static_cast<Index>(std::floor(static_cast<double>(share) / beta_)), most = 2 * share - least;
    if (most >= cap) {
      most = cap;
      least = 2 * share - most;
    }
    const bool uniform = layers == 1 || (variant_ == "kvcf" && contest.context_length < 2 * share);
    const Index step = uniform ? 0 : (most - least) / (layers - 1);
    std::vector<Index> tokens;
    for (Index l = 0; l < layers; ++l) tokens.push_back(uniform ? share : most - l * step);
    return tokens;
  }

  /// kvpress: the window inside the layer's number, the budget not rounded before, and the same number everywhere where
  /// the last layer's would not hold the window. A single layer is the first one, and has most.
  std::vector<Index> kvpress(const Contest& contest, const Budget& budget) const {
    const Index layers = static_cast<Index>(contest.scores.size());
    const Ends ends = ends_of(budget.asked(), static_cast<double>(contest.per_head()));
    const double window = static_cast<double>(contest.pinned);
    const bool line =
        static_cast<double>(contest.context_length) >= ends.most && ends.most >= ends.least && ends.least >= window;
    std::vector<Index> tokens;
    for (Index l = 0; l < layers; ++l) {
      const double quota = !line ? budget.asked() : layers == 1 ? ends.most : ends.at(l, layers);
      tokens.push_back(std::max<Index>(static_cast<Index>(std::nearbyint(quota)), contest.pinned) - contest.pinned);
    }
    return tokens;
  }

  double beta_;
  std::string variant_;
};

}  // namespace

AllocatorInfo pyramid_allocator_info() {
  return {
      .name = "pyramid",
      .summary = "PyramidKV: the first layer gets most tokens, each further one less by the same step",
      .paper = "PyramidKV, 2024, arXiv 2406.02069",
      .description =
          "With B = tokens per head without the pinned ones, the last layer gets B / beta and the first 2B - B / beta "
          "(at most all contenders; then the last gets what keeps the mean), the others a straight line between. The "
          "first half of the layers is rounded half up, and the last half so that mirrored layers add up to 2B: exact "
          "and nested. variant=kvcf and variant=adakv are the published integer steps on top of the window, which "
          "overspend (4.6 % at 128 tokens, 32 layers; kvcf is uniform where the context is below 2B); variant=kvpress "
          "counts the window in, is uniform where b / beta is below the window, and takes b as it was asked for: 5 % "
          "of 1025 tokens are 51.25, and every layer's number is rounded by itself, half to even.",
      .scope = "layers",
      .options = {OptionSpec::real("beta", 20, 1, 1e6, "the last layer's share is B / beta"),
                  OptionSpec::choice("variant", "exact", {"exact", "kvcf", "adakv", "kvpress"}, "whose rounding")},
      .make = make_allocator<Pyramid>,
  };
}

}  // namespace laprox
