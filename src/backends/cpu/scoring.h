#pragma once

#include <map>

#include "laprox/backend.h"

namespace laprox::cpu {

/// The scoring primitives in float32 with float64 sums over chunks; each is computed once per layer and kept.
class Scoring : public ScoringKernels {
 public:
  Scoring(const LayerTensors& layer, int threads) : layer_(layer), threads_(threads) {}

  const WindowStatistics& window_statistics(Index window) override;
  const Matrix& window_products(Index window) override;
  const Matrix& column_sums() override;
  int threads() const override { return threads_; }
  void visit_heads(Index window, const HeadVisitor& visit) override;
  const Matrix& value_norms() override;
  const Matrix& value_l1_norms() override;
  const Matrix& value_products() override;

 private:
  const LayerTensors& layer_;
  int threads_;
  std::map<Index, WindowStatistics> statistics_;
  std::map<Index, Matrix> window_products_;
  Matrix column_sums_, value_norms_, value_l1_norms_, value_products_;
};

/// The primitives themselves, one file each; shapes as in ScoringKernels.
WindowStatistics window_statistics(const LayerTensors& layer, Index window, int threads);
/// The same over the stored queries [first_query, first_query + queries), be they prompt queries or decoded ones.
WindowStatistics column_statistics(const LayerTensors& layer, Index first_query, Index queries, int threads);
Matrix window_products(const LayerTensors& layer, Index window, int threads);
void visit_heads(const LayerTensors& layer, Index window, const HeadVisitor& visit, int threads);
Matrix column_sums(const LayerTensors& layer, int threads);
Matrix value_norms(const LayerTensors& layer, int threads);
Matrix value_l1_norms(const LayerTensors& layer, int threads);
Matrix value_products(const LayerTensors& layer, int threads);

}  // namespace laprox::cpu
