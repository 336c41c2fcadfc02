#pragma once

#include <memory>
#include <span>
#include <vector>

#include "laprox/backend.h"

namespace laprox {

/// Some KV heads of a layer as their caches stand while the model decodes: what they hold looks like a prompt of its
/// own, so that every scorer and primitive serves it. Entries keep their order, keys keep the rotation of their
/// positions.
class HeldLayer {
 public:
  /// Of KV heads [first, first + count). `layer` and `backend` must outlive this.
  HeldLayer(const LayerTensors& layer, Index first, Index count, const Backend& backend);
  ~HeldLayer();

  const LayerTensors& layer() const { return layer_; }

  /// Every KV head holds equally many entries, tokens[kv_head], ascending. The queries are the `window` ones up to
  /// `position`, whose keys are the last entries of every head. No sliding window hides an entry from one of them.
  void hold(std::span<const std::vector<std::int32_t>> tokens, Index position, Index window);

  /// Valid until the next call of hold.
  LayerView view() const { return LayerView(held_); }
  std::unique_ptr<ScoringKernels> kernels();

 private:
  class Kernels;
  void gather(const Tensor& from, Tensor& to, std::span<const std::vector<std::int32_t>> tokens) const;
  ScoringKernels& whole();

  LayerTensors layer_;  ///< of these KV heads alone, in the memory of the whole layer
  const Backend& backend_;
  LayerTensors held_;
  std::vector<std::vector<std::int32_t>> tokens_;
  LayerTensors all_;                             ///< the layer with all its tokens as the context
  std::unique_ptr<ScoringKernels> all_kernels_;  ///< what depends on a token alone is formed once for all cuts
};

}  // namespace laprox
