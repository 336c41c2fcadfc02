#pragma once

#include <optional>

#include "backends/far_queries.h"
#include "laprox/backend.h"

namespace laprox::cpu {

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
Matrix removal_energies(const LayerTensors& layer, Index window, OverQueries over, bool joint, int threads);

/// What one pass over the last `queries` prompt queries gives.
struct CausalSums {
  Matrix columns;  ///< column_sums, to the bit where these are all
  Matrix far;      ///< far_energies
};
CausalSums causal_sums(const LayerTensors& layer, Index distance, Index queries, int threads);

/// The scoring primitives in float32 with float64 sums over chunks.
class Scoring : public ScoringKernels {
 public:
  Scoring(const LayerTensors& layer, int threads) : layer_(layer), threads_(threads) {}

  int threads() const override { return threads_; }
  void visit_heads(Index window, const HeadVisitor& visit) override {
    cpu::visit_heads(layer_, window, visit, threads_);
  }
  void expect_far_energies(Index distance) override { expected_distance_ = distance; }

 protected:
  WindowStatistics compute_window_statistics(Index window) override {
    return cpu::window_statistics(layer_, window, threads_);
  }
  Matrix compute_window_products(Index window) override { return cpu::window_products(layer_, window, threads_); }
  /// Far energies that are expected come from the same pass.
  Matrix compute_column_sums() override {
    if (expected_distance_) far_energies(*expected_distance_);
    return columns_.size() > 0 ? std::move(columns_) : cpu::column_sums(layer_, threads_);
  }
  Matrix compute_value_norms() override { return cpu::value_norms(layer_, threads_); }
  Matrix compute_value_l1_norms() override { return cpu::value_l1_norms(layer_, threads_); }
  Matrix compute_value_products() override { return cpu::value_products(layer_, threads_); }
  Matrix compute_removal_energies(Index window, OverQueries over, bool joint) override {
    return cpu::removal_energies(layer_, window, over, joint, threads_);
  }
  Matrix compute_far_energies(Index distance, Index queries) override {
    const Index count = far_queries(layer_, queries);
    CausalSums sums = causal_sums(layer_, distance, count, threads_);
    if (count == layer_.context_length) columns_ = std::move(sums.columns);
    return std::move(sums.far);
  }

 private:
  const LayerTensors& layer_;
  int threads_;
  std::optional<Index> expected_distance_;
  Matrix columns_;  ///< of the last pass for far energies
};

}  // namespace laprox::cpu
