#pragma once

#include <memory>
#include <vector>

#include "laprox/backend.h"

namespace laprox {

/// A layer as its caches stand while the model decodes: what they hold looks like a prompt of its own, so that every
/// scorer and primitive serves it. Entries keep their order, keys keep the rotation of their positions.
class HeldLayer {
 public:
  /// Both must outlive this.
  HeldLayer(const LayerTensors& layer, const Backend& backend) : layer_(layer), backend_(backend) {}
  ~HeldLayer();

  const LayerTensors& layer() const { return layer_; }

  /// Every KV head holds equally many entries, tokens[kv_head], ascending. The queries are the `window` ones up to
  /// `position`, whose keys are the last entries of every head.
  void hold(const std::vector<std::vector<std::int32_t>>& tokens, Index position, Index window);

  /// Valid until the next call of hold.
  LayerView view() const { return LayerView(held_); }
  std::unique_ptr<ScoringKernels> kernels();

 private:
  class Kernels;
  void gather(const Tensor& from, Tensor& to, const std::vector<std::vector<std::int32_t>>& tokens) const;
  ScoringKernels& whole();

  const LayerTensors& layer_;
  const Backend& backend_;
  LayerTensors held_;
  std::vector<std::vector<std::int32_t>> tokens_;
  LayerTensors all_;                             ///< the layer with all its tokens as the context
  std::unique_ptr<ScoringKernels> all_kernels_;  ///< what depends on a token alone is formed once for all cuts
};

}  // namespace laprox
