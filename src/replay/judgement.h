#pragma once

#include <vector>

#include "replay/cache_census.h"

namespace laprox {

/// The second pass over a dump, as far as one rank goes: judges what was selected, layer by layer.
class Judgement {
 public:
  /// Fills the cells of `policies`, [policy].cells[budget]; everything must outlive this.
  Judgement(const DumpInfo& info, const SweepOptions& options, const Backend& backend,
            const std::vector<Selection>& selections, std::vector<PolicyResult>& policies);

  /// The rows of q that add_layer reads.
  DumpInfo::Rows rows() const;
  /// Throws BackendError where an error is not finite.
  void add_layer(LayerTensors layer);
  /// What was found in these layers, for another rank, and what that one found in its own.
  void write(const std::vector<Index>& layers, ByteWriter& writer) const;
  void read(const std::vector<Index>& layers, ByteReader& reader);
  /// Forms the model's figures where all layers were added or read.
  void finish();

 private:
  struct LayerKeeps;
  void judge_layer(LayerTensors& layer, const LayerKeeps& kept);

  const DumpInfo& info_;
  const SweepOptions& options_;
  const Backend& backend_;
  const std::vector<Selection>& selections_;
  std::vector<PolicyResult>& policies_;
  std::vector<std::vector<CacheCensus>> census_;  ///< [policy][budget], under a schedule
};

}  // namespace laprox
