#include "backends/cpu/causal_rows.h"
#include "backends/cpu/scoring.h"
#include "base/parallel.h"
#include "laprox/error.h"

namespace laprox::cpu {

Matrix column_sums(const LayerTensors& layer, int threads) {
  const LayerGeometry& geometry = layer.geometry;
  const Index context = layer.context_length, group = geometry.group();
  require(layer.queries() == context, "column sums read every prompt query");
  Matrix sums = Matrix::Zero(geometry.query_heads, context);
  Panels keys(geometry.head_size, context);
  for (Index kv_head = 0; kv_head < geometry.kv_heads; ++kv_head) {
    const float* k = layer.k.data<float>() + kv_head * layer.tokens * geometry.head_size;
    parallel_for(threads, keys.count(), [&](Index p) { keys.set_panel_transposed(p, k, geometry.head_size, 1.0F); });
    Matrix partial = Matrix::Zero(group * kCausalChunks, padded(context));
    parallel_for(threads, group * kCausalChunks, [&](Index task) {
      CausalRows rows(layer, kv_head * group + task / kCausalChunks, keys);
      const Index chunk = task % kCausalChunks, end = causal_chunk_begin(chunk + 1, context);
      for (Index query = causal_chunk_begin(chunk, context); query < end; query += kQueryBlock) {
        rows.compute(query, std::min(end, query + kQueryBlock));
        rows.add_columns(&partial(task, 0));
      }
    });
    for (Index task = 0; task < group * kCausalChunks; ++task) {
      sums.row(kv_head * group + task / kCausalChunks) += partial.row(task).head(context);
    }
  }
  return sums;
}

}  // namespace laprox::cpu
