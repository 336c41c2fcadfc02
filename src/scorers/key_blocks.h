#pragma once

#include <algorithm>

#include "base/parallel.h"
#include "laprox/layer.h"

namespace laprox {

/// Keys that are in memory as float64 at a time, per thread.
constexpr Index kKeyBlock = 1024;

/// Calls visit(kv_head, block, first, keys) on `threads` threads, in any order: `keys` [count, d] are the KV head's
/// keys of the tokens from `first` = block * kKeyBlock on, in float64.
template <class Visit>
void for_each_key_block(const LayerView& layer, int threads, const Visit& visit) {
  const Index context = layer.context_length(), blocks = (context + kKeyBlock - 1) / kKeyBlock;
  parallel_for(threads, layer.geometry().kv_heads * blocks, [&](Index task) {
    const Index kv_head = task / blocks, block = task % blocks, first = block * kKeyBlock;
    visit(kv_head, block, first, layer.keys(kv_head, first, std::min(kKeyBlock, context - first)));
  });
}

}  // namespace laprox
