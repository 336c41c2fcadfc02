#include "dump/shared_contents.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "laprox/error.h"

namespace laprox {

namespace {

bool shares_cache(const DumpInfo& dump, Index layer) {
  const auto reads_it = [&](const LayerSummary& other) { return other.kv_source == layer; };
  return dump.layers[static_cast<std::size_t>(layer)].kv_source >= 0 ||
         std::any_of(dump.layers.begin(), dump.layers.end(), reads_it);
}

}  // namespace

/// Two sums of all words, each a bijection of every word: equal for equal bytes, and by chance alone for others.
SharedContents::Hash SharedContents::hash_of(const Tensor& tensor) {
  Hash hash{0x9e3779b97f4a7c15ULL, 0xc2b2ae3d27d4eb4fULL};
  const Index bytes = tensor.bytes();
  for (Index first = 0; first < bytes; first += static_cast<Index>(sizeof(std::uint64_t))) {
    std::uint64_t word = 0;
    std::memcpy(&word, tensor.raw() + first, static_cast<std::size_t>(std::min<Index>(sizeof word, bytes - first)));
    hash[0] = (hash[0] ^ word) * 0xff51afd7ed558ccdULL;
    hash[0] ^= hash[0] >> 32;
    hash[1] = (hash[1] + word) * 0xc4ceb9fe1a85ec53ULL;
    hash[1] ^= hash[1] >> 29;
  }
  return hash;
}

void SharedContents::check(const LayerTensors& layer, const DumpInfo& dump, const std::string& object) {
  if (!shares_cache(dump, layer.layer) || layer.k.memory() || layer.v.memory()) return;
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
    throw DumpError(dump.path.string(), object + name,
                    fmt::format("the {} of layer {}, whose cache this layer reads (kv_source)", name, source),
                    "other values", "store those again, or leave kv_source out");
  }
}

}  // namespace laprox
