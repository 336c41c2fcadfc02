#pragma once

#include <future>

#include "laprox/backend.h"
#include "laprox/layer_source.h"

namespace laprox {

/// The element type in which `backend` is given a layer: its own, or the layer's half type where it takes that.
inline ElementType tensor_type(const Backend& backend, const LayerSummary& layer) {
  const auto stored = layer.common_type();
  const bool is_half = stored == ElementType::float16 || stored == ElementType::bfloat16;
  return is_half && backend.takes_half_types() ? *stored : backend.element_type();
}

/// Reads a dump's layers in order, each while the one before it is worked on. Two layers are in memory.
class LayerStream {
 public:
  /// Reads `rows` of q, in the types that `backend` wants. With check_all, the other rows are checked to be finite too,
  /// though not kept.
  LayerStream(const LayerSource& dump, DumpInfo::Rows rows, const Backend& backend, bool check_all)
      : dump_(dump), rows_(rows), backend_(backend), check_all_(check_all) {
    start(0);
  }

  LayerTensors next() {
    LayerTensors layer = pending_.get();
    if (layer.layer + 1 < static_cast<Index>(dump_.info().layers.size())) start(layer.layer + 1);
    return layer;
  }

 private:
  void start(Index layer) {
    pending_ = std::async(std::launch::async, [this, layer] {
      if (check_all_) dump_.check_other_queries(layer, rows_);
      return dump_.read_layer(layer, rows_,
                              tensor_type(backend_, dump_.info().layers[static_cast<std::size_t>(layer)]));
    });
  }

  const LayerSource& dump_;
  DumpInfo::Rows rows_;
  const Backend& backend_;
  bool check_all_;
  std::future<LayerTensors> pending_;
};

}  // namespace laprox
