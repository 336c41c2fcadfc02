#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "laprox/backend.h"
#include "laprox/layer.h"
#include "laprox/options.h"
#include "laprox/ranking.h"

namespace laprox {

/// The prompt queries that a scorer reads.
struct QueryNeed {
  enum class Kind { none, window, all };
  Kind kind = Kind::none;
  Index window = 0;  ///< of window: how many of the last prompt queries
};

/// Gives every context token of every KV head of a layer a score; what scores higher is kept longer. Stateless.
class Scorer {
 public:
  virtual ~Scorer() = default;

  virtual QueryNeed queries() const { return {}; }
  virtual Pins pins() const { return {}; }

  /// Scores [kv_heads, C] of one layer. Scores of pinned tokens are never read.
  virtual Matrix score(const LayerView& layer, ScoringKernels& kernels) const = 0;

  /// One KV head's context tokens, best first. Policies whose kept set is not simply the best scores override this.
  virtual Ranking rank(std::span<const double> scores) const { return rank_by_score(scores, pins()); }

  /// False where rank() does more than sort by score, so that no allocator but `head` can cut the scores.
  virtual bool ranks_by_score() const { return true; }

  /// The policy that evicts nothing: every budget keeps the whole context.
  virtual bool keeps_everything() const { return false; }
};

/// A scorer's entry in the registry: everything the command line, the help and the report say of it.
struct ScorerInfo {
  std::string name;               ///< kebab-case, unique
  std::string summary;            ///< one line
  std::string paper;              ///< title, year and arXiv number; empty for a baseline
  std::string description;        ///< the formula, and what the published code does differently
  std::string default_allocator;  ///< the published method's budget split
  std::vector<OptionSpec> options;
  /// Builds the scorer. It may settle defaults that depend on other options; throws UsageError where options
  /// contradict.
  std::unique_ptr<Scorer> (*make)(Options&);
};

/// All scorers, in the order of src/scorers/list.inc.
const std::vector<ScorerInfo>& scorers();

}  // namespace laprox
