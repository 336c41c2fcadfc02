#pragma once

#include <map>

#include "laprox/verify.h"
#include "replay/selection.h"
#include "verify/precision.h"

namespace laprox::verify {

/// Kept tokens of some layers, 1 or 0: by layer, [budget][kv_head][token].
using KeptMasks = std::map<Index, std::vector<std::vector<std::vector<std::uint8_t>>>>;

KeptMasks masks_of(const Selection& selection, Index context_length);

/// Assesses kept sets of one policy by the float64 reference's scores.
///
/// Near the cut of a head, two scores may be confused by an evaluation whose errors there are at most the tolerance:
/// twice the largest plain error among the 32 tokens on either side of the cut, plus one ulp, the error of a weight
/// (weight_error.h) and 1e-5 of the score at the cut, and never more than a fifth of it. (Where scores are places in an
/// order: twice the plain error of each token.) A kept set is right if scores within that tolerance of the reference's
/// make the policy keep exactly it. Those in its favour decide: what it keeps is raised by the tolerance, all else
/// lowered. The number of tokens that each head keeps is assessed the same way through the policy's own allocator.
///
/// Where one choice moves others (scores that are places or that jump), one rounding may move many tokens. A backend,
/// whose primitives are assessed beside, is therefore excused up to a fifth of what it keeps if plain evaluations
/// differ from the reference at any budget, or none stays in range; a candidate is not.
class KeptAssessor {
 public:
  enum class Subject { backend, candidate };

  /// The policy and the precision must outlive the assessor.
  KeptAssessor(const Policy& policy, const std::vector<BudgetRequest>& budgets, const DumpInfo& dump,
               const Precision& precision, Subject subject);

  /// Layers in order; `plain` holds nothing for a program that leaves the range of its numbers.
  /// weight_error: see weight_error.h; 0 for a policy that reads no queries.
  void add_layer(LayerScores expected, std::vector<std::optional<LayerScores>> plain, double weight_error);

  /// One check per budget. Layers that `found` lacks are not assessed.
  std::vector<KeptCheck> assess(const KeptMasks& found) const;

 private:
  struct Head;
  Selection select(const std::vector<LayerScores>& layers) const;
  std::vector<Selection> plain_selections() const;
  bool excuses(const Selection& selection, const std::vector<Selection>& plain) const;
  KeptCheck assess_budget(std::size_t budget, const Selection& selection, const std::vector<Selection>& plain,
                          bool excused, const KeptMasks& found) const;
  void assess_tokens(const Head& head, KeptCheck& check) const;
  void assess_counts(std::size_t budget, const std::vector<Head>& heads, const Selection& selection,
                     const std::vector<Selection>& plain, KeptCheck& check) const;
  HeadCounts favourable_counts(std::size_t budget, const std::vector<Head>& heads) const;
  Head head_of(std::size_t budget, const Selection& selection, Index layer, Index kv_head,
               const std::vector<std::uint8_t>& mask) const;
  double plain_error(const Head& head, Index token) const;
  double tolerance(Index layer, double plain_error, double size) const;

  const Policy& policy_;
  const Precision& precision_;
  Subject subject_;
  Index context_;
  std::vector<std::string> labels_;
  std::vector<Budget> budgets_;
  std::vector<LayerScores> expected_;                           ///< [layer]
  std::vector<std::vector<std::optional<LayerScores>>> plain_;  ///< [layer][program]
  std::vector<double> weight_errors_;                           ///< [layer]
};

}  // namespace laprox::verify
