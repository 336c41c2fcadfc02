#pragma once

#include "laprox/backend.h"

namespace laprox::reference {

/// The scoring primitives as their equations say: every attention row spelled out, every v W_O multiplied out.
class Scoring : public ScoringKernels {
 public:
  explicit Scoring(const LayerTensors& layer);

  int threads() const override { return 1; }
  void visit_heads(Index window, const HeadVisitor& visit) override;

 protected:
  WindowStatistics compute_window_statistics(Index window) override;
  Matrix compute_window_products(Index window) override;
  Matrix compute_column_sums() override;
  Matrix compute_value_norms() override;
  Matrix compute_value_l1_norms() override;
  Matrix compute_value_products() override;
  Matrix compute_removal_energies(Index window, OverQueries over, bool joint) override;
  Matrix compute_far_energies(Index distance, Index queries) override;

 private:
  Matrix attention(Index head, Index queries) const;
  Index window_queries(Index window) const;

  const LayerTensors& layer_;
};

}  // namespace laprox::reference
