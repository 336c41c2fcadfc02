#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/cpu/logits.h"
#include "backends/cpu/scoring.h"
#include "base/parallel.h"
#include "laprox/error.h"

namespace laprox::cpu {

namespace {

/// Queries whose whole score rows are held at once; 2 tiles of 8192 keys fill most of a 1 MB second-level cache.
constexpr Index kQueryBlock = 2 * kTile;
/// Tasks per query head. Fixed, so that the order of sums does not depend on the number of threads.
constexpr Index kChunks = 16;

/// The query at which chunk `chunk` begins: chunks of equal area under the causal triangle, in whole blocks.
Index chunk_begin(Index chunk, Index context) {
  const double share = std::sqrt(static_cast<double>(chunk) / static_cast<double>(kChunks));
  const Index query = static_cast<Index>(share * static_cast<double>(context));
  return chunk == kChunks ? context : query / kQueryBlock * kQueryBlock;
}

/// Adds the attention columns of one block of queries to column sums, holding their whole score rows.
class RowBlock {
 public:
  RowBlock(const LayerTensors& layer, Index head, const Panels& keys)
      : layer_(layer),
        head_(head),
        keys_(keys),
        scores_(kQueryBlock * padded(layer.context_length)),
        queries_(kQueryBlock * layer.geometry.head_size) {}

  void add(Index first_query, Index last_query, double* sums) {
    const Index rows = last_query - first_query, size = layer_.geometry.head_size;
    const Index first_panel = layer_.attention.first_visible(first_query) / kPanel;
    const Index last_panel = padded(last_query) / kPanel;
    const Index stride = (last_panel - first_panel) * kPanel;
    scale_queries(first_query, rows);
    multiply(rows, size, {queries_.data(), size, 1}, keys_, first_panel, last_panel, scores_.data(), stride);
    if (layer_.attention.softcap > 0) apply_softcap(scores_.data(), rows * stride, layer_.attention.softcap);
    float inverse[kQueryBlock];
    for (Index row = 0; row < rows; ++row) {
      inverse[row] = exponentials(scores_.data() + row * stride, first_query + row, first_panel * kPanel, stride);
    }
    add_columns(rows, stride, inverse, sums + first_panel * kPanel);
  }

 private:
  void scale_queries(Index first_query, Index rows) {
    const Index size = layer_.geometry.head_size;
    const float* q = layer_.q.data<float>() + (head_ * layer_.queries() + first_query) * size;
    const float scale = static_cast<float>(layer_.attention.scale);
    for (Index i = 0; i < rows * size; ++i) queries_[i] = scale * q[i];
  }

  /// Turns one row of logits into exp(logit - maximum), 0 where unseen, and returns 1 / their sum.
  float exponentials(float* row, Index position, Index first_key, Index stride) const {
    const float hidden = -std::numeric_limits<float>::infinity();
    const Index visible = layer_.attention.first_visible(position) - first_key;
    std::fill(row, row + visible, hidden);
    std::fill(row + (position + 1 - first_key), row + stride, hidden);
    Lanes maxima = broadcast(hidden);
    for (Index i = 0; i < stride; i += kLanes) maxima = max(maxima, load(row + i));
    const auto& sinks = layer_.attention.sinks;
    const float sink = sinks.empty() ? hidden : static_cast<float>(sinks[static_cast<std::size_t>(head_)]);
    const float largest = std::max(maximum(maxima), sink);
    Lanes total{};
    for (Index i = 0; i < stride; i += kLanes) {
      const Lanes e = exp_nonpositive(load(row + i) - largest);
      store(row + i, e);
      total += e;
    }
    return 1.0F / (sum(total) + std::exp(sink - largest));
  }

  /// sums[i] += sum over rows of e[row, i] * inverse[row]; float over the few rows of a block, double over blocks.
  void add_columns(Index rows, Index stride, const float* inverse, double* sums) const {
    for (Index i = 0; i < stride; i += kLanes) {
      Lanes columns{};
      for (Index row = 0; row < rows; ++row) columns += load(scores_.data() + row * stride + i) * inverse[row];
      for (int lane = 0; lane < kLanes; ++lane) sums[i + lane] += columns[lane];
    }
  }

  const LayerTensors& layer_;
  Index head_;
  const Panels& keys_;
  Buffer<float> scores_, queries_;
};

}  // namespace

Matrix column_sums(const LayerTensors& layer, int threads) {
  const LayerGeometry& geometry = layer.geometry;
  const Index context = layer.context_length, group = geometry.group();
  require(layer.queries() == context, "column sums read every prompt query");
  Matrix sums = Matrix::Zero(geometry.query_heads, context);
  Panels keys(geometry.head_size, context);
  for (Index kv_head = 0; kv_head < geometry.kv_heads; ++kv_head) {
    const float* k = layer.k.data<float>() + kv_head * layer.tokens * geometry.head_size;
    parallel_for(threads, keys.count(), [&](Index p) { keys.set_panel_transposed(p, k, geometry.head_size, 1.0F); });
    Matrix partial = Matrix::Zero(group * kChunks, padded(context));
    parallel_for(threads, group * kChunks, [&](Index task) {
      RowBlock block(layer, kv_head * group + task / kChunks, keys);
      const Index begin = chunk_begin(task % kChunks, context), end = chunk_begin(task % kChunks + 1, context);
      for (Index query = begin; query < end; query += kQueryBlock) {
        block.add(query, std::min(end, query + kQueryBlock), &partial(task, 0));
      }
    });
    for (Index task = 0; task < group * kChunks; ++task) {
      sums.row(kv_head * group + task / kChunks) += partial.row(task).head(context);
    }
  }
  return sums;
}

}  // namespace laprox::cpu
