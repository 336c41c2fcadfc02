#include <cstdint>

#include "base/scatter.h"
#include "laprox/scorer.h"

namespace laprox {

namespace {

/// Independent uniform scores: what a policy must beat. A score is a hash of (seed, layer, head, token), so it does not
/// depend on the order of computation or the machine.
class Random : public Scorer {
 public:
  explicit Random(const Options& options) : Scorer({}), seed_(static_cast<std::uint64_t>(options.integer("seed"))) {}

  Matrix score(const LayerView& layer, ScoringKernels&) const override {
    Matrix scores(layer.geometry().kv_heads, layer.context_length());
    for (Index head = 0; head < scores.rows(); ++head) {
      const std::uint64_t stream = scatter(scatter(scatter(seed_) + static_cast<std::uint64_t>(layer.layer())) +
                                           static_cast<std::uint64_t>(layer.first_kv_head() + head));
      for (Index token = 0; token < scores.cols(); ++token) {
        scores(head, token) = static_cast<double>(scatter(stream + static_cast<std::uint64_t>(token)) >> 11) * 0x1p-53;
      }
    }
    return scores;
  }

 private:
  std::uint64_t seed_;
};

}  // namespace

ScorerInfo random_info() {
  return {
      .name = "random",
      .summary = "keeps tokens drawn at random (reference)",
      .paper = "",
      .description = "Uniform scores, one per (layer, KV head, token), from a seed. Nothing is pinned.",
      .default_allocator = "head",
      .needs = "-",
      .options = {OptionSpec::integer("seed", 0, 0, 1'000'000'000, "of the random scores")},
      .make = make_scorer<Random>,
  };
}

}  // namespace laprox
