#include "laprox/scorer.h"
#include "util/groups.h"
#include "util/pooling.h"

namespace laprox {

namespace {

/// SnapKV: the attention that the last prompt queries pay, pooled over neighbouring tokens.
class SnapKV : public Scorer {
 public:
  explicit SnapKV(const Options& options)
      : window_(options.integer("window")),
        kernel_(options.integer("kernel")),
        pool_(pool_of(options)),
        pool_first_(options.text("order") == "pool-first"),
        group_(group_of(options)) {
    check_kernel(kernel_, "snapkv");
  }

  QueryNeed queries() const override { return {.kind = QueryNeed::Kind::window, .window = window_}; }
  Pins pins() const override { return {.last = window_}; }

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const Index context = layer.context_length(), window = std::min(window_, context), prefix = context - window;
    Matrix attention = kernels.window_statistics(window_).sum / static_cast<double>(window);
    if (pool_first_) pool_prefix(attention, prefix, pool_, kernel_);
    Matrix scores = reduce_groups(attention, layer.geometry().group(), group_);
    if (!pool_first_) pool_prefix(scores, prefix, pool_, kernel_);
    return scores;
  }

 private:
  Index window_, kernel_;
  Pool pool_;
  bool pool_first_;
  GroupReduction group_;
};

}  // namespace

ScorerInfo snapkv_info() {
  std::vector<OptionSpec> options{OptionSpec::integer("window", 32, 1, 1 << 20, "last prompt queries that vote; kept")};
  for (OptionSpec& spec : pooling_options("max", 7)) options.push_back(std::move(spec));
  options.push_back(group_option("mean"));
  options.push_back(OptionSpec::choice("order", "reduce-first", {"reduce-first", "pool-first"},
                                       "whether query heads are reduced before pooling or after"));
  return {
      .name = "snapkv",
      .summary = "attention of the last prompt queries, max-pooled over neighbouring tokens",
      .paper = "SnapKV, 2024, arXiv 2404.14469",
      .description =
          "s[i] = mean over the window's queries of A_h[t, i], reduced over the group, pooled over the tokens before "
          "the "
          "window; the window is kept. Defaults are the paper's LongBench configuration (window 32, max pool 7) at "
          "KV-head "
          "granularity; kvpress uses window=64,kernel=5,pool=avg. The original code keeps one set per query head, "
          "which "
          "multiplies the memory by the group size.",
      .default_allocator = "head",
      .options = std::move(options),
      .make = [](Options& chosen) -> std::unique_ptr<Scorer> { return std::make_unique<SnapKV>(chosen); },
  };
}

}  // namespace laprox
