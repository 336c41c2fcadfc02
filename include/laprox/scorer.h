#pragma once

#include <limits>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "laprox/backend.h"
#include "laprox/layer.h"
#include "laprox/options.h"
#include "laprox/ranking.h"

namespace laprox {

/// How a scorer goes on while the model decodes (see Schedule).
enum class Decoding {
  rescored,     ///< every cut applies the prompt's rule to what the cache holds, with the last queries
  accumulated,  ///< attention is summed query by query over what the cache holds at its step: Scorer::score_sums
  undefined     ///< it makes sense after a prompt only
};

/// What a scorer is, beside the work that it does. The defaults are those of a scorer that reads no query, pins nothing
/// and whose kept set is simply the best scores.
struct ScorerTraits {
  QueryNeed queries = {};
  Pins pins = {};
  /// The distance at which it reads far energies, of the queries that `queries.of_all` says; 0: it reads none.
  Index far_distance = 0;
  /// True where it undoes RoPE, so that the dump must say how queries and keys were rotated.
  bool undoes_rope = false;
  /// True where the scores, and with them the order, change with the budget: then no ranking serves every budget, and
  /// score_each has them instead of score.
  bool depends_on_budget = false;
  /// True where preference() says how much of the budget the layer should have.
  bool gives_preference = false;
  /// False for published code that does not keep the budget (whole layers, whole chunks): then spends() says what it
  /// keeps, and no allocator but `head` makes sense.
  bool spends_exactly = true;
  /// False where rank() does more than sort by score, so that no allocator but `head` can cut the scores.
  bool ranks_by_score = true;
  /// True where scores only say an order (places in it, or 1 for what is kept), so that their size means nothing.
  bool scores_are_places = false;
  /// True where scores may be below 0, so that no allocator can take shares of their sum.
  bool below_zero = false;
  /// True where a score may jump although attention changes ever so little: a threshold marks the token, or does not.
  bool scores_jump = false;
  /// True for the policy that evicts nothing: every budget keeps the whole context.
  bool keeps_everything = false;
  Decoding decoding = Decoding::rescored;
  /// The longest context that it can score in reasonable time.
  Index longest_context = std::numeric_limits<Index>::max();
};

/// Gives every context token of every KV head of a layer a score; what scores higher is kept longer. Stateless.
class Scorer {
 public:
  virtual ~Scorer() = default;

  const ScorerTraits& traits() const { return traits_; }

  /// Scores [kv_heads, C] of one layer. Scores of pinned tokens are never read. Throws Bug where the scores depend on
  /// the budget.
  virtual Matrix score(const LayerView& layer, ScoringKernels& kernels) const;

  /// Scores [kv_heads, C] for each budget, in tokens per KV head. Throws Bug where they do not depend on it.
  virtual std::vector<Matrix> score_each(std::span<const Index> budgets, const LayerView& layer,
                                         ScoringKernels& kernels) const;

  /// How much of the model's budget the layer should have, relative to the others, for the allocators that ask for it.
  /// Throws Bug where the scorer gives no preference.
  virtual double preference(const LayerView& layer, ScoringKernels& kernels) const;

  /// How many tokens of a head's ranking are kept at a budget of `tokens`.
  virtual Index spends(Index tokens, Index layer, const Ranking& ranking) const;

  /// One KV head's context tokens, best first. Policies whose kept set is not simply the best scores override this.
  virtual Ranking rank(std::span<const double> scores) const { return rank_by_score(scores, traits_.pins); }

  /// The entries that a budget of `count` evicts, ascending: those that rank() puts behind the first `count`.
  virtual std::vector<std::int32_t> evict(std::span<const double> scores, Index count) const;

  /// Decoding::accumulated: the scores of one KV head's entries from the attention [group, entries] that its query
  /// heads have given them so far. Throws Bug for others.
  virtual std::vector<double> score_sums(const Matrix& sums) const;

  /// The floating-point operations that one layer takes beyond the kernels' primitives.
  virtual double flops(const LayerGeometry&, Index /*context*/, Index /*queries*/) const { return 0; }

 protected:
  explicit Scorer(const ScorerTraits& traits) : traits_(traits) {}

 private:
  ScorerTraits traits_;
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

/// The factory of a scorer that is made from its options, or of nothing where it has none.
template <class T>
std::unique_ptr<Scorer> make_scorer(Options& options) {
  if constexpr (std::is_constructible_v<T, Options&>) {
    return std::make_unique<T>(options);
  } else {
    return std::make_unique<T>();
  }
}

/// All scorers, in the order of src/scorers/list.inc.
const std::vector<ScorerInfo>& scorers();

}  // namespace laprox
