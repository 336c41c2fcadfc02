#pragma once

#include <string>

#include "laprox/scorer.h"
#include "scorers/groups.h"
#include "scorers/pooling.h"

namespace laprox {

/// Base of scorers that read the attention of the last prompt queries and pool what comes before.
class WindowScorer : public Scorer {
 public:
  /// The options window, pool and kernel.
  static std::vector<OptionSpec> options(Index window, const std::string& pool, Index kernel) {
    std::vector<OptionSpec> specs{
        OptionSpec::integer("window", window, 1, 1 << 20, "last prompt queries that vote; kept")};
    for (OptionSpec& spec : pooling_options(pool, kernel)) specs.push_back(std::move(spec));
    return specs;
  }

 protected:
  /// What becomes of the window's own tokens.
  enum class WindowTokens { pinned, compete };

  /// `traits`: all but the queries and the pins. Throws UsageError, naming `who`, on an even kernel.
  WindowScorer(const Options& options, const std::string& who, const ScorerTraits& traits = {},
               WindowTokens tokens = WindowTokens::pinned)
      : Scorer(with_window(traits, options.integer("window"), tokens)),
        kernel_(options.integer("kernel")),
        pool_(pool_of(options)) {
    check_kernel(kernel_, who);
  }

  Index window() const { return traits().queries.window; }
  bool pins_window() const { return traits().pins.last > 0; }
  /// The tokens before the window.
  Index prefix_of(const LayerView& layer) const {
    return layer.context_length() - std::min(window(), layer.context_length());
  }
  /// Pools what lies between the first pinned tokens and the window.
  void pool(Matrix& rows, Index prefix) const {
    pool_between(rows, std::min(traits().pins.first, prefix), prefix, pool_, kernel_);
  }

 private:
  static ScorerTraits with_window(ScorerTraits traits, Index window, WindowTokens tokens) {
    traits.queries = {.kind = QueryNeed::Kind::window, .window = window};
    traits.pins.last = tokens == WindowTokens::pinned ? window : 0;
    return traits;
  }

  Index kernel_;
  Pool pool_;
};

}  // namespace laprox
