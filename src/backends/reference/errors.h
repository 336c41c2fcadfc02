#pragma once

#include "laprox/backend.h"

namespace laprox::reference {

/// The replayed as its equations say: one masked attention per budget, the difference of two outputs.
class LayerReplay {
 public:
  explicit LayerReplay(const LayerTensors& layer);

  const ExactOutput& exact_output() const { return exact_; }
  std::vector<OutputError> output_errors(const LayerKeep& keep, SoftmaxMode mode) const;

 private:
  struct Heads {
    std::vector<Matrix> weights;  ///< [query_head] [n, T]
    std::vector<Matrix> outputs;  ///< [query_head] [n, d_v], before W_o
  };
  Heads heads(const std::vector<std::vector<bool>>& kept) const;
  void drop_evicted(Heads& exact, const std::vector<std::vector<bool>>& kept) const;
  Matrix weighted_values(Index head, const Matrix& weights) const;
  Matrix layer_output(const Heads& heads) const;
  OutputError compare(const Heads& kept_heads, const std::vector<std::vector<bool>>& kept) const;
  double bound(const std::vector<std::vector<bool>>& kept) const;

  const LayerTensors& layer_;
  Heads exact_heads_;
  ExactOutput exact_;
};

}  // namespace laprox::reference
