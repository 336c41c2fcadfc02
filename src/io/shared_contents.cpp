#include "io/shared_contents.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/dump_layout.h"
#include "io/sha256.h"

namespace laprox::io {

namespace {

std::string hash_of(const Tensor& tensor) {
  return sha256_of({tensor.raw(), static_cast<std::size_t>(tensor.bytes())});
}

bool shares_cache(const DumpInfo& dump, Index layer) {
  const auto reads_it = [&](const LayerSummary& other) { return other.kv_source == layer; };
  return dump.layers[static_cast<std::size_t>(layer)].kv_source >= 0 ||
         std::any_of(dump.layers.begin(), dump.layers.end(), reads_it);
}

}  // namespace

void SharedContents::check(const LayerTensors& layer, const DumpInfo& dump, const Hdf5Reader& file) {
  if (!shares_cache(dump, layer.layer)) return;
  const std::scoped_lock lock(mutex_);
  const ElementType type = layer.k.type();
  const auto [mine, is_new] = read_.try_emplace({layer.layer, type});
  if (!is_new) return;  // a second pass over the dump
  mine->second = {hash_of(layer.k), hash_of(layer.v)};
  const Index source = dump.layers[static_cast<std::size_t>(layer.layer)].kv_source;
  const auto its = read_.find({source, type});
  if (its == read_.end()) return;
  for (std::size_t n = 0; n < 2; ++n) {
    if (mine->second[n] == its->second[n]) continue;
    const char* name = n == 0 ? "k" : "v";
    file.refuse(layer_object(layer.layer, name),
                fmt::format("the {} of layer {}, whose cache this layer reads (kv_source)", name, source),
                "other values", "store those again, or leave kv_source out");
  }
}

}  // namespace laprox::io
