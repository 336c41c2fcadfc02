#pragma once

#include "backends/cuda/kernels.h"

namespace laprox::cuda {

/// LaProx scores from tensors that are on the device to scores that stay there, what a serving engine would run after
/// the prefill of a layer: the policy `laprox` with its default readings (mean product over the group, average pooling
/// of the attention factor before the window). The attention factor and the value factor are formed on two streams.
class LaProxScores {
 public:
  /// Scores by the last min(window, C) stored queries of `layer`, which must be prompt queries and outlive this object.
  LaProxScores(const Layer& layer, int window, int kernel);

  /// Computes the scores, ordered on `stream`. Takes memory when first called, and never again: later calls may be
  /// captured in a graph.
  void launch(cudaStream_t stream);
  /// [kv_heads, C]
  const float* scores() const { return scores_.data(); }

 private:
  Layer layer_;
  QueryRange range_;
  int kernel_;
  DeviceBuffer<float2> partial_;
  DeviceBuffer<RowSoftmax> softmax_;
  DeviceBuffer<float> squares_, norms_, scores_;
  DeviceBuffer<FormPair> pairs_;
  PackedForms forms_;
  Stream side_;
  Event begin_, end_;
};

}  // namespace laprox::cuda
