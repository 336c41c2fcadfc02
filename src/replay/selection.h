#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "laprox/sweep.h"
#include "replay/share.h"

namespace laprox {

/// True for an oracle, which reads the very queries that judge.
bool reads_judged(const Policy& policy);
/// Rows of the prompt queries that these policies read. Throws UsageError where some are not stored.
DumpInfo::Rows scoring_rows(const DumpInfo& dump, const std::vector<Policy>& policies);
/// Rows of the queries that judge. Throws UsageError where none are stored.
DumpInfo::Rows judging_rows(const DumpInfo& dump, const SweepOptions& options);

/// The scorer's scores of a layer: one for all budgets (tokens per KV head), or one each where they depend on the
/// budget. Throws BackendError, naming `who`, where one is not finite.
std::vector<Matrix> layer_scores(const Scorer& scorer, const std::string& who, std::span<const Index> budgets,
                                 const LayerView& layer, ScoringKernels& kernels);

/// What a policy makes of one layer: the scores of each order, and the layer's preference and the norm of its
/// residual stream where its allocator asks for them.
struct LayerScores {
  std::vector<Matrix> scores;
  double preference = 0;
  double residual_norm = 0;
};
LayerScores unchecked_score_layer(const Policy& policy, std::span<const Index> budgets, const LayerView& layer,
                                  ScoringKernels& kernels);
/// The same with finite scores: throws BackendError where one is not.
LayerScores score_layer(const Policy& policy, std::span<const Index> budgets, const LayerView& layer,
                        ScoringKernels& kernels);

class SharedCaches;

/// Turns one policy's scores into rankings, layer by layer, and then splits its budgets. Within, a "cache" is a layer
/// that has one of its own, counted over these.
class Selector {
 public:
  /// For layers that are all here, each with a cache of its own. `policy` must outlive the selector.
  Selector(const Policy& policy, std::vector<Budget> budgets, int threads);
  /// For a share of a dump's layers. The policy and what is shared must outlive it.
  Selector(const Policy& policy, std::vector<Budget> budgets, int threads, const DumpInfo& dump, const Share& share);

  const Policy& policy() const { return policy_; }
  /// The layers of the share, in order. Throws BackendError where a score is not finite.
  void add_layer(const LayerView& layer, ScoringKernels& kernels);
  void add_layer(const LayerScores& layer);
  ~Selector();
  Selector(Selector&&) noexcept;
  /// The selection, with the laws of HeadCounts checked. All ranks call it together.
  Selection finish();

 private:
  void add_cache(std::size_t cache, const LayerScores& scores);
  void rank_cache(std::size_t order, std::size_t cache, const Matrix& scores);
  void learn_of_others(Contest& contest);
  HeadCounts split(std::size_t order, const Budget& budget) const;
  HeadCounts spend(std::size_t order, const Budget& budget) const;
  Budget spendable(std::size_t order, const Budget& asked) const;
  void add_up();
  void check_counts(std::size_t order, const HeadCounts& counts, const Budget& budget) const;

  const Policy& policy_;
  std::vector<Budget> budgets_;
  int threads_;
  Ranks* ranks_ = &single_rank();
  std::optional<std::vector<Index>> held_;  ///< layers of the share; nothing: all, as they come
  std::size_t next_ = 0;                    ///< of these
  std::vector<std::size_t> own_;            ///< caches that were added
  Selection selection_;
  std::unique_ptr<SharedCaches> shared_;  ///< null where every layer has a cache of its own
  std::vector<Contest> contests_;         ///< [order]
  /// A stretch [first, last) of a ranking whose scores are equal.
  struct Tie {
    Index first, last;
  };
  Index tied_entries(std::size_t order, const HeadCounts& counts) const;
  std::vector<std::vector<std::vector<std::vector<Tie>>>> ties_;  ///< [order][layer][kv_head][stretch]
};

/// A hash of what a selection keeps at one budget in the layers that are here, to be added up over ranks, and whether
/// two selections keep exactly the same there.
std::uint64_t fingerprint(const Selection& selection, std::size_t budget);
bool keep_the_same(const Selection& a, const Selection& b, std::size_t budget);

}  // namespace laprox
