#pragma once

#include <vector>

#include "replay/selection.h"

namespace laprox {

/// What the cut after the prompt may keep at each budget: a schedule's budget can be larger than the prompt.
std::vector<Budget> prompt_budgets(const DumpInfo& dump, const SweepOptions& options);
/// What each budget comes to on this dump.
std::vector<Budget> resolve_budgets(const DumpInfo& dump, const SweepOptions& options);

/// The first pass over a dump, as far as one rank goes: scores layers, and selects what every policy keeps.
class Scoring {
 public:
  /// Everything must outlive this.
  Scoring(const DumpInfo& dump, const SweepOptions& options, const Backend& backend, const Share& share);

  /// The rows of q that add_layer reads.
  DumpInfo::Rows rows() const { return read_; }
  /// The layers of the share, in order. Throws BackendError where a score is not finite.
  void add_layer(LayerTensors layer);
  /// [policy]: all counts, and the rankings of the share's layers. All ranks call it together.
  std::vector<Selection> finish();

 private:
  void add_to_selectors(const LayerView& layer, ScoringKernels& kernels, bool judged);
  bool sums_attention(std::size_t policy) const;

  const SweepOptions& options_;
  const Backend& backend_;
  bool oracles_;  ///< whether a policy reads the queries that judge
  DumpInfo::Rows scoring_, judging_, read_;
  std::vector<Selector> selectors_;             ///< [policy]
  std::vector<std::vector<Matrix>> attention_;  ///< [policy][layer], see Selection::attention
};

}  // namespace laprox
