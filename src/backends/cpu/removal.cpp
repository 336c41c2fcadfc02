#include <algorithm>

#include "backends/cpu/group_removal.h"
#include "backends/cpu/scoring.h"
#include "base/parallel.h"
#include "laprox/error.h"

namespace laprox::cpu {

Matrix removal_energies(const LayerTensors& layer, Index window, OverQueries over, bool joint, int threads) {
  const Index queries = std::min(window, std::max(layer.context_length, layer.queries())),
              context = layer.context_length;
  require(queries <= layer.queries(), "the layer was read with the queries that its scorers need");
  Matrix energies(layer.geometry.kv_heads, context);
  for (Index kv_head = 0; kv_head < layer.geometry.kv_heads; ++kv_head) {
    const GroupRemoval group(layer, kv_head, layer.queries() - queries, queries, over, joint, threads);
    const Index blocks = (context + GroupRemoval::kTokens - 1) / GroupRemoval::kTokens;
    parallel_for(threads, blocks, [&](Index block) {
      const Index first = block * GroupRemoval::kTokens;
      group.energies(first, std::min(context, first + GroupRemoval::kTokens), &energies(kv_head, first));
    });
  }
  return energies;
}

}  // namespace laprox::cpu
