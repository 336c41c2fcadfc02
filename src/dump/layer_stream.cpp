#include "dump/layer_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "base/convert.h"
#include "base/parallel.h"
#include "dump/range.h"
#include "laprox/error.h"

namespace laprox {

namespace {

/// Elements that a thread converts at a time.
constexpr Index kPiece = Index{1} << 20;

template <class T>
Tensor widened(const Tensor& source, int threads) {
  Tensor target(element_type_of<T>, source.shape());
  parallel_for(threads, (source.size() + kPiece - 1) / kPiece, [&](Index piece) {
    const Index first = piece * kPiece, count = std::min(kPiece, source.size() - first);
    io::convert(source.raw() + first * size_of(source.type()), source.type(), target.data<T>() + first, count);
  });
  return target;
}

/// One tensor after the other, so that both types of only one are in memory.
void widen(LayerTensors& layer, ElementType type, int threads) {
  for (Tensor* tensor : {&layer.q, &layer.k, &layer.v, &layer.w_o}) {
    if (tensor->type() == type) continue;
    *tensor = type == ElementType::float64 ? widened<double>(*tensor, threads) : widened<float>(*tensor, threads);
  }
}

}  // namespace

LayerTensors read_for(const Backend& backend, const LayerSource& dump, Index layer, DumpInfo::Rows rows) {
  const LayerSummary& summary = dump.info().layers.at(static_cast<std::size_t>(layer));
  LayerTensors tensors = dump.read_layer(layer, rows, tensor_type(backend, summary));
  check_not_too_small(tensors, dump.info());
  return tensors;
}

LayerTensors LayerStream::next() {
  LayerTensors layer = pending_.get();
  const LayerSource& dump = *reads_[next_ - 1].dump;
  const ElementType type = tensor_type(backend_, dump.info().layers[static_cast<std::size_t>(layer.layer)]);
  try {
    widen(layer, type, backend_.threads());
  } catch (const std::bad_alloc&) {
    throw BackendError(
        fmt::format("{}: layer {}: out of memory for its tensors as {}; 'laprox inspect' prints what a "
                    "dump needs, and fewer stored queries (laprox-dump --queries recent:64) need less",
                    dump.info().path.string(), layer.layer, to_string(type)));
  }
  check_not_too_small(layer, dump.info());
  start();
  return layer;
}

void LayerStream::start() {
  if (next_ == reads_.size()) return;
  pending_ = std::async(std::launch::async, [this, read = reads_[next_++]] {
    if (check_all_) read.dump->check_other_queries(read.layer, read.rows);
    return read.dump->read_layer(read.layer, read.rows,
                                 type_read_ahead(backend_, read.dump->info().layers[read.layer]));
  });
}

}  // namespace laprox
