#pragma once

#include <vector>

#include "laprox/allocator.h"

namespace laprox {

/// Contenders per KV head of each layer, where all layers have the same number of KV heads: [layer]; nothing otherwise.
bool same_heads_everywhere(const Contest& contest);

/// Every head of a layer gets the layer's tokens and the pinned ones.
HeadCounts uniform_within_layers(const std::vector<Index>& tokens, const Contest& contest);

/// Layer shares where layers differ in KV heads, so that equal integers per layer cannot meet the budget: quotas in
/// tokens per head are scaled to the budget, and the largest remainders go to single heads.
HeadCounts spread_over_heads(const std::vector<double>& quotas, const Contest& contest, const Budget& budget);

}  // namespace laprox
