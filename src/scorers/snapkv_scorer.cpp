#include "scorers/snapkv_scorer.h"

namespace laprox {

std::vector<OptionSpec> SnapKVScorer::options(const std::string& pool, Index kernel) {
  std::vector<OptionSpec> options = WindowScorer::options(32, pool, kernel);
  options.push_back(group_option("mean"));
  options.push_back(OptionSpec::choice("order", "reduce-first", {"reduce-first", "pool-first"},
                                       "whether query heads are reduced before pooling or after"));
  return options;
}

SnapKVScorer::SnapKVScorer(const Options& options, const std::string& who, const ScorerTraits& traits,
                           WindowTokens tokens)
    : WindowScorer(options, who, traits, tokens),
      pool_first_(options.text("order") == "pool-first"),
      group_(group_of(options)) {}

Matrix SnapKVScorer::snapkv_scores(const LayerView& layer, ScoringKernels& kernels) const {
  const Index prefix = prefix_of(layer);
  Matrix attention = kernels.window_statistics(window()).sum / static_cast<double>(layer.context_length() - prefix);
  if (pool_first_) pool(attention, prefix);
  Matrix scores = reduce_groups(attention, layer.geometry().group(), group_);
  if (!pool_first_) pool(scores, prefix);
  return scores;
}

Matrix SnapKVScorer::padded_scores(const LayerView& layer, ScoringKernels& kernels) const {
  Matrix scores = snapkv_scores(layer, kernels);
  const Index prefix = prefix_of(layer);
  const double most = prefix > 0 ? scores.leftCols(prefix).maxCoeff() : 0;
  scores.rightCols(layer.context_length() - prefix).setConstant(most + 1);
  return scores;
}

Matrix SnapKVScorer::base_scores(const LayerView& layer, ScoringKernels& kernels) const {
  return pins_window() ? snapkv_scores(layer, kernels) : padded_scores(layer, kernels);
}

}  // namespace laprox
