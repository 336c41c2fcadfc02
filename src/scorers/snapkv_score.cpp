#include "scorers/snapkv_score.h"

namespace laprox {

std::vector<OptionSpec> SnapKVScore::options(const std::string& pool, Index kernel) {
  std::vector<OptionSpec> options{OptionSpec::integer("window", 32, 1, 1 << 20, "last prompt queries that vote; kept")};
  for (OptionSpec& spec : pooling_options(pool, kernel)) options.push_back(std::move(spec));
  options.push_back(group_option("mean"));
  options.push_back(OptionSpec::choice("order", "reduce-first", {"reduce-first", "pool-first"},
                                       "whether query heads are reduced before pooling or after"));
  return options;
}

SnapKVScore::SnapKVScore(const Options& options, const std::string& who)
    : window_(options.integer("window")),
      kernel_(options.integer("kernel")),
      pool_(pool_of(options)),
      pool_first_(options.text("order") == "pool-first"),
      group_(group_of(options)) {
  check_kernel(kernel_, who);
}

Matrix SnapKVScore::of(const LayerView& layer, ScoringKernels& kernels) const {
  const Index context = layer.context_length(), window = std::min(window_, context), prefix = context - window;
  Matrix attention = kernels.window_statistics(window_).sum / static_cast<double>(window);
  if (pool_first_) pool_prefix(attention, prefix, pool_, kernel_);
  Matrix scores = reduce_groups(attention, layer.geometry().group(), group_);
  if (!pool_first_) pool_prefix(scores, prefix, pool_, kernel_);
  return scores;
}

Matrix SnapKVScore::padded(const LayerView& layer, ScoringKernels& kernels) const {
  Matrix scores = of(layer, kernels);
  const Index window = std::min(window_, layer.context_length()), prefix = layer.context_length() - window;
  const double most = prefix > 0 ? scores.leftCols(prefix).maxCoeff() : 0;
  scores.rightCols(window).setConstant(most + 1);
  return scores;
}

}  // namespace laprox
