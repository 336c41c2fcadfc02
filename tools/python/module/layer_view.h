#pragma once

#include "laprox/scorer.h"
#include "module.h"

namespace laprox::python {

/// What a policy written in Python reads of a layer, while it runs: a LayerView and the backend's primitives.
class PolicyLayer {
 public:
  /// It shows the last `queries` prompt queries, whatever else the sweep reads for other policies. tokens: the budget
  /// per KV head, or 0.
  PolicyLayer(const LayerView& view, ScoringKernels& kernels, Index queries, Index tokens)
      : view_(&view), kernels_(&kernels), queries_(queries), tokens_(tokens) {}

  /// Throws UsageError once the policy has returned.
  const LayerView& view() const { return *checked(view_); }
  ScoringKernels& kernels() const { return *checked(kernels_); }
  Index queries() const { return queries_; }
  Index tokens() const { return tokens_; }
  void close() {
    view_ = nullptr;
    kernels_ = nullptr;
  }

 private:
  template <class T>
  static T* checked(T* pointer);

  const LayerView* view_;
  ScoringKernels* kernels_;
  Index queries_, tokens_;
};

}  // namespace laprox::python
