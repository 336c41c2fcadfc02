#pragma once

#include <optional>
#include <vector>

#include "replay/judgement.h"
#include "replay/scoring.h"

namespace laprox {

/// One dump's replay, as far as one rank goes: score its layers, select, judge its layers, gather, finish.
class DumpReplay {
 public:
  /// rank_of: of each layer. Everything must outlive this.
  DumpReplay(const LayerSource& dump, const SweepOptions& options, const Backend& backend, Ranks& ranks,
             std::vector<Index> rank_of);

  const LayerSource& dump() const { return dump_; }
  const Share& share() const { return share_; }

  DumpInfo::Rows scoring_rows() const { return scoring_->rows(); }
  void score(LayerTensors layer) { scoring_->add_layer(std::move(layer)); }
  /// Selects what is kept. All ranks call it together.
  void select();
  DumpInfo::Rows judging_rows() const { return judgement_->rows(); }
  void judge(LayerTensors layer) { judgement_->add_layer(std::move(layer)); }
  /// Brings what all ranks found to the first one. All ranks call it together.
  void gather();
  /// The result without its hash, on the first rank.
  DumpResult finish();

 private:
  template <class Visit>
  void each_kept(const std::vector<Index>& layers, const Visit& visit);
  std::string found_here();
  void take(std::string_view bytes, const std::vector<Index>& layers);

  const LayerSource& dump_;
  const SweepOptions& options_;
  const Backend& backend_;
  std::vector<Index> rank_of_;
  Share share_;
  std::optional<Scoring> scoring_;
  std::vector<Selection> selections_;
  DumpResult result_;
  std::optional<Judgement> judgement_;
};

}  // namespace laprox
