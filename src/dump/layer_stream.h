#pragma once

#include <future>
#include <optional>
#include <utility>
#include <vector>

#include "laprox/backend.h"
#include "laprox/layer_source.h"

namespace laprox {

/// The half type in which all tensors of a layer are stored, if there is one.
inline std::optional<ElementType> half_type(const LayerSummary& layer) {
  const auto stored = layer.common_type();
  return stored == ElementType::float16 || stored == ElementType::bfloat16 ? stored : std::nullopt;
}

/// The element type in which `backend` is given a layer: its own, or the layer's half type where it takes that.
inline ElementType tensor_type(const Backend& backend, const LayerSummary& layer) {
  const auto half = half_type(layer);
  return half && backend.takes_half_types() ? *half : backend.element_type();
}

/// Reads a layer at once, as its turn in a LayerStream would give it to `backend`.
LayerTensors read_for(const Backend& backend, const LayerSource& dump, Index layer, DumpInfo::Rows rows);

/// The element type in which a layer waits for its turn: its half type if it has one, which takes half the memory or
/// less.
inline ElementType type_read_ahead(const Backend& backend, const LayerSummary& layer) {
  return half_type(layer).value_or(backend.element_type());
}

/// A layer of a dump, with these rows of q.
struct LayerRead {
  const LayerSource* dump;
  Index layer;
  DumpInfo::Rows rows;
};

/// Reads layers, of one dump or several, each while the one before it is worked on. Two layers are in memory; the one
/// read ahead stays as it is stored where that is a half type, and takes the type its backend wants when it is its
/// turn.
class LayerStream {
 public:
  /// Reads in the types that `backend` wants. With check_all, the other rows of q are checked to be finite too, though
  /// not kept.
  LayerStream(std::vector<LayerRead> reads, const Backend& backend, bool check_all)
      : reads_(std::move(reads)), backend_(backend), check_all_(check_all) {
    start();
  }

  /// Must be called no more often than there are layers to read.
  LayerTensors next();

 private:
  void start();

  std::vector<LayerRead> reads_;
  std::size_t next_ = 0;
  const Backend& backend_;
  bool check_all_;
  std::future<LayerTensors> pending_;
};

}  // namespace laprox
