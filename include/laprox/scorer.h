#pragma once

#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "laprox/backend.h"
#include "laprox/layer.h"
#include "laprox/options.h"
#include "laprox/ranking.h"

namespace laprox {

/// The queries that a scorer reads.
struct QueryNeed {
  enum class Kind {
    none,
    window,  ///< the last `window` prompt queries
    all,     ///< all prompt queries
    judged   ///< the very queries that judge: an oracle
  };
  Kind kind = Kind::none;
  Index window = 0;
};

/// Gives every context token of every KV head of a layer a score; what scores higher is kept longer. Stateless.
class Scorer {
 public:
  virtual ~Scorer() = default;

  virtual QueryNeed queries() const { return {}; }
  /// True where it undoes RoPE, so that the dump must say how queries and keys were rotated.
  virtual bool undoes_rope() const { return false; }
  virtual Pins pins() const { return {}; }

  /// Scores [kv_heads, C] of one layer. Scores of pinned tokens are never read. Throws Bug where the scores depend on
  /// the budget: then score_each has them.
  virtual Matrix score(const LayerView& layer, ScoringKernels& kernels) const;

  /// True where the scores, and with them the order, change with the budget: then no ranking serves every budget.
  virtual bool depends_on_budget() const { return false; }
  /// Scores [kv_heads, C] for each budget, in tokens per KV head.
  virtual std::vector<Matrix> score_each(std::span<const Index> budgets, const LayerView& layer,
                                         ScoringKernels& kernels) const;

  /// How much of the model's budget the layer should have, relative to the others, for the allocators that ask for it.
  virtual bool gives_preference() const { return false; }
  virtual double preference(const LayerView& layer, ScoringKernels& kernels) const;

  /// How many tokens of a head's ranking are kept at a budget of `tokens`, for published code that does not keep the
  /// budget (whole layers, whole chunks); then spends_exactly() is false, and no allocator but `head` makes sense.
  virtual Index spends(Index tokens, Index layer, const Ranking& ranking) const;
  virtual bool spends_exactly() const { return true; }

  /// One KV head's context tokens, best first. Policies whose kept set is not simply the best scores override this.
  virtual Ranking rank(std::span<const double> scores) const { return rank_by_score(scores, pins()); }

  /// False where rank() does more than sort by score, so that no allocator but `head` can cut the scores.
  virtual bool ranks_by_score() const { return true; }

  /// True where scores only say an order (places in it, or 1 for what is kept), so that their size means nothing.
  virtual bool scores_are_places() const { return false; }

  /// True where a score may jump although attention changes ever so little: a threshold marks the token, or does not.
  virtual bool scores_jump() const { return false; }

  /// The longest context that it can score in reasonable time, and the floating-point operations that one layer takes
  /// beyond the kernels' primitives.
  virtual Index longest_context() const { return std::numeric_limits<Index>::max(); }
  virtual double flops(const LayerGeometry&, Index /*context*/, Index /*queries*/) const { return 0; }

  /// The policy that evicts nothing: every budget keeps the whole context.
  virtual bool keeps_everything() const { return false; }
};

/// A scorer's entry in the registry: everything the command line, the help and the report say of it.
struct ScorerInfo {
  std::string name;                 ///< kebab-case, unique
  std::string summary;              ///< one line
  std::string paper;                ///< title, year and arXiv number; empty for a baseline
  std::string description;          ///< the formula, and what the published code does differently
  std::string default_allocator;    ///< the published method's budget split; it may carry options
  std::string needs;                ///< what it reads, in the terms of the dump format: "window queries, K"
  bool nested = true;               ///< whether a larger budget keeps all that a smaller one keeps
  std::string only_allocator = {};  ///< the one split that makes sense, where the scores mean nothing to the others
  std::vector<OptionSpec> options;
  /// Builds the scorer. It may settle defaults that depend on other options; throws UsageError where options
  /// contradict.
  std::unique_ptr<Scorer> (*make)(Options&);
};

/// All scorers, in the order of src/scorers/list.inc.
const std::vector<ScorerInfo>& scorers();

}  // namespace laprox
