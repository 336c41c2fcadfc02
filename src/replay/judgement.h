#pragma once

#include <vector>

#include "replay/decoding.h"

namespace laprox {

/// The second pass over a dump: judges what was selected, layer by layer.
class Judgement {
 public:
  /// Fills the cells of `policies`, [policy].cells[budget]; everything must outlive this.
  Judgement(const DumpInfo& info, const SweepOptions& options, const Backend& backend,
            const std::vector<Selection>& selections, std::vector<PolicyResult>& policies);

  /// The rows of q that add_layer reads.
  DumpInfo::Rows rows() const;
  /// Layers in order. Throws BackendError where an error is not finite.
  void add_layer(LayerTensors layer);
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
