#pragma once

#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "laprox/budget.h"
#include "laprox/options.h"
#include "laprox/ranking.h"
#include "laprox/ranks.h"
#include "laprox/scores.h"

namespace laprox {

/// What an allocator splits a budget over: the scores that compete for it, pinned tokens left out.
struct Contest {
  Index context_length = 0;
  Index pinned = 0;  ///< pinned tokens per KV head, kept before any contender
  /// [layer][kv_head]: the contenders' scores, descending; each has context_length - pinned of them. Empty lists for
  /// the layers that other ranks hold.
  std::vector<std::vector<std::vector<double>>> scores;
  std::vector<double> pinned_sum;  ///< [layer]: sum of the pinned tokens' scores; 0 for layers of other ranks
  std::vector<double> weight;      ///< [layer]: what Allocator::weigh says of each, those of other ranks included
  std::vector<double> preference;  ///< [layer]: the scorer's own layer weights; 0 unless the allocator asks for them
  /// [layer]: how large the residual stream is that the layer's output is added to, the root of the mean over the last
  /// prompt queries of its squared norm; 0 unless the allocator asks for it.
  std::vector<double> residual_norm;
  std::vector<bool> elsewhere = {};  ///< [layer]: whether another rank holds its scores; empty: none does
  Ranks* ranks = &single_rank();     ///< those that hold the layers together

  Index per_head() const { return context_length - pinned; }
  bool holds(std::size_t layer) const { return elsewhere.empty() || !elsewhere[layer]; }
};

/// What an allocator is, beside the work that it does.
struct AllocatorTraits {
  /// True where the split reads no scores, so that it serves rankings that do more than sort by score.
  bool ignores_scores = false;
  /// True where Contest::preference is read.
  bool needs_preference = false;
  /// True where Contest::residual_norm is read.
  bool needs_residual_norm = false;
  /// True where scores count as shares of a sum, which means nothing where some are below 0.
  bool needs_shares = false;
  /// False where an option reproduces published code that does not keep the budget.
  bool spends_exactly = true;
  /// How many caches, which are layers unless layers share one, the split is made for; 0: any number.
  Index caches = 0;
};

/// Splits a budget over layers and KV heads. Integers only; the counts add up to the budget exactly.
class Allocator {
 public:
  virtual ~Allocator() = default;
  const AllocatorTraits& traits() const { return traits_; }
  /// The one number that the split of the other layers needs of this one's scores; read as Contest::weight.
  virtual double weigh(const Contest&, std::size_t /*layer*/) const { return 0; }
  /// Kept entries per layer and KV head, pinned tokens included: pinned <= count <= context_length. All ranks call it
  /// together; the counts of layers that other ranks hold mean nothing.
  virtual HeadCounts allocate(const Contest& contest, const Budget& budget) const = 0;

 protected:
  explicit Allocator(const AllocatorTraits& traits) : traits_(traits) {}

 private:
  AllocatorTraits traits_;
};

/// An allocator's entry in the registry.
struct AllocatorInfo {
  std::string name;
  std::string summary;
  std::string paper;
  std::string description;
  std::string scope;   ///< what shares a budget: "head", "layer" (its heads), "layers", "model" (layers and heads)
  bool nested = true;  ///< whether a larger budget gives no head fewer tokens
  std::vector<OptionSpec> options;
  std::unique_ptr<Allocator> (*make)(const Options&);
};

/// The factory of an allocator that is made from its options, or of nothing where it has none.
template <class T>
std::unique_ptr<Allocator> make_allocator(const Options& options) {
  if constexpr (std::is_constructible_v<T, const Options&>) {
    return std::make_unique<T>(options);
  } else {
    return std::make_unique<T>();
  }
}

/// All allocators, in the order of src/allocators/list.inc.
const std::vector<AllocatorInfo>& allocators();

}  // namespace laprox
