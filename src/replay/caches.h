#pragma once

#include <vector>

#include "replay/selection.h"

namespace laprox {

/// KV caches that several layers read (Gemma 3n, Gemma 4): one cache has one kept set, and its readers score it
/// jointly. An entry's joint score is the mean of what its readers give it; the layer's preference is their mean too,
/// and the residual norm the root of their mean square.
class SharedCaches {
 public:
  /// kv_source of each layer, -1 where it has a cache of its own.
  explicit SharedCaches(std::vector<Index> sources) : sources_(std::move(sources)) {}

  /// Layers in order; all that read one cache, or none.
  void add(std::size_t index, const LayerScores& layer);
  /// What each cache's readers make of it together, in the order of the layers that own a cache; nothing of caches
  /// whose readers were not added. Leaves nothing.
  std::vector<LayerScores> take_joint();
  /// Turns a selection of caches into one of layers: each layer keeps what its cache keeps.
  void spread(Selection& selection) const;

 private:
  /// Which cache a layer reads, counted over the layers that own one.
  std::size_t cache_of(std::size_t layer) const;

  std::vector<Index> sources_;
  std::vector<LayerScores> sums_;  ///< [cache]
  std::vector<Index> readers_;     ///< [cache]
};

}  // namespace laprox
