#pragma once

#include <future>
#include <utility>
#include <vector>

#include "laprox/backend.h"
#include "laprox/layer_source.h"

namespace laprox {

/// The element type in which `backend` is given a layer: its own, or the layer's half type where it takes that.
inline ElementType tensor_type(const Backend& backend, const LayerSummary& layer) {
  const auto stored = layer.common_type();
  const bool is_half = stored == ElementType::float16 || stored == ElementType::bfloat16;
  return is_half && backend.takes_half_types() ? *stored : backend.element_type();
}

/// A layer of a dump, with these rows of q.
struct LayerRead {
  const LayerSource* dump;
  Index layer;
  DumpInfo::Rows rows;
};

/// Reads layers, of one dump or several, each while the one before it is worked on. Two layers are in memory.
class LayerStream {
 public:
  /// Reads in the types that `backend` wants. With check_all, the other rows of q are checked to be finite too, though
  /// not kept.
  LayerStream(std::vector<LayerRead> reads, const Backend& backend, bool check_all)
      : reads_(std::move(reads)), backend_(backend), check_all_(check_all) {
    start();
  }

  /// Must be called no more often than there are layers to read.
  LayerTensors next() {
    LayerTensors layer = pending_.get();
    start();
    return layer;
  }

 private:
  void start() {
    if (next_ == reads_.size()) return;
    pending_ = std::async(std::launch::async, [this, read = reads_[next_++]] {
      if (check_all_) read.dump->check_other_queries(read.layer, read.rows);
      const LayerSummary& summary = read.dump->info().layers[read.layer];
      return read.dump->read_layer(read.layer, read.rows, tensor_type(backend_, summary));
    });
  }

  std::vector<LayerRead> reads_;
  std::size_t next_ = 0;
  const Backend& backend_;
  bool check_all_;
  std::future<LayerTensors> pending_;
};

}  // namespace laprox
