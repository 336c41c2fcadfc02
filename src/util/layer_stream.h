#pragma once

#include <future>

#include "laprox/dump.h"

namespace laprox {

/// Reads a dump's layers in order, each while the one before it is worked on. Two layers are in memory.
class LayerStream {
 public:
  /// Reads `rows` of q. With check_all, the other rows are checked to be finite too, though not kept.
  LayerStream(const DumpReader& dump, DumpInfo::Rows rows, ElementType type, bool check_all)
      : dump_(dump), rows_(rows), type_(type), check_all_(check_all) {
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
      return dump_.read_layer(layer, rows_, type_);
    });
  }

  const DumpReader& dump_;
  DumpInfo::Rows rows_;
  ElementType type_;
  bool check_all_;
  std::future<LayerTensors> pending_;
};

}  // namespace laprox
