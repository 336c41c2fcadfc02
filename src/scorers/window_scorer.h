#pragma once

#include <string>

#include "laprox/scorer.h"
#include "scorers/groups.h"
#include "scorers/pooling.h"

namespace laprox {

/// Base of scorers that read the attention of the last prompt queries, keep these, and pool what comes before.
class WindowScorer : public Scorer {
 public:
  /// The options window, pool and kernel.
  static std::vector<OptionSpec> options(Index window, const std::string& pool, Index kernel) {
    std::vector<OptionSpec> specs{
        OptionSpec::integer("window", window, 1, 1 << 20, "last prompt queries that vote; kept")};
    for (OptionSpec& spec : pooling_options(pool, kernel)) specs.push_back(std::move(spec));
    return specs;
  }

  QueryNeed queries() const override { return {.kind = QueryNeed::Kind::window, .window = window_}; }
  Pins pins() const override { return {.last = window_}; }

 protected:
  /// Throws UsageError, naming `who`, on an even kernel.
  WindowScorer(const Options& options, const std::string& who)
      : window_(options.integer("window")), kernel_(options.integer("kernel")), pool_(pool_of(options)) {
    check_kernel(kernel_, who);
  }

  Index window() const { return window_; }
  /// The tokens before the window.
  Index prefix_of(const LayerView& layer) const {
    return layer.context_length() - std::min(window_, layer.context_length());
  }
  void pool(Matrix& rows, Index prefix) const { pool_prefix(rows, prefix, pool_, kernel_); }

 private:
  Index window_, kernel_;
  Pool pool_;
};

}  // namespace laprox
