#pragma once

#include <map>

#include "laprox/backend.h"

namespace laprox::reference {

/// The scoring primitives as their equations say: every attention row spelled out, every v W_O multiplied out.
class Scoring : public ScoringKernels {
 public:
  explicit Scoring(const LayerTensors& layer);

  const WindowStatistics& window_statistics(Index window) override;
  const Matrix& window_products(Index window) override;
  const Matrix& column_sums() override;
  int threads() const override { return 1; }
  void visit_heads(Index window, const HeadVisitor& visit) override;
  const Matrix& value_norms() override;
  const Matrix& value_l1_norms() override;
  const Matrix& value_products() override;

 private:
  Matrix attention(Index head, Index queries) const;
  Index window_queries(Index window) const;

  const LayerTensors& layer_;
  std::map<Index, WindowStatistics> statistics_;
  std::map<Index, Matrix> window_products_;
  Matrix column_sums_, value_norms_, value_l1_norms_, value_products_;
};

}  // namespace laprox::reference
