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
  /// [kv_head][query][T]: which keys each query finds in the cache.
  using Caches = std::vector<std::vector<std::vector<bool>>>;
  struct Heads {
    std::vector<Matrix> weights;  ///< [query_head] [n, T]
    std::vector<Matrix> outputs;  ///< [query_head] [n, d_v], before W_o
  };
  Heads heads(const Caches& kept) const;
  Caches caches(const LayerKeep& keep, std::size_t budget) const;
  void drop_evicted(Heads& exact, const Caches& kept) const;
  Matrix weighted_values(Index head, const Matrix& weights) const;
  Matrix layer_output(const Heads& heads) const;
  OutputError compare(const Heads& kept_heads, const Caches& kept) const;
  double bound(const Caches& kept) const;

  const LayerTensors& layer_;
  Heads exact_heads_;
  ExactOutput exact_;
};

}  // namespace laprox::reference
