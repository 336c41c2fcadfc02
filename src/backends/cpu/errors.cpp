#include "backends/cpu/errors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backends/batches.h"
#include "backends/cpu/projection.h"
#include "backends/cpu/scoring.h"
#include "backends/cpu/walk.h"
#include "base/parallel.h"
#include "laprox/error.h"

namespace laprox::cpu {

namespace {

std::vector<double> sinks_of(const LayerTensors& layer, Index kv_head) {
  const auto& sinks = layer.attention.sinks;
  if (sinks.empty()) return {};
  const auto first = sinks.begin() + kv_head * layer.geometry.group();
  return {first, first + layer.geometry.group()};
}

/// The head outputs of some policies' cells, and the exact ones, for all judged queries of a layer.
class HeadOutputs {
 public:
  HeadOutputs(const LayerTensors& layer, std::span<const LayerKeep> policies, SoftmaxMode mode)
      : layer_(layer), policies_(policies), mode_(mode), cells_(1) {
    for (const LayerKeep& keep : policies) cells_ += static_cast<Index>(keep.counts.size());
    width_ = layer.geometry.query_heads * layer.geometry.value_size;
    values_ = Buffer<float>(cells_ * layer.queries() * width_);
    kept_ = Buffer<float>((cells_ - 1) * layer.queries() * width_);
  }

  Index cells() const { return cells_; }
  const float* values() const { return values_.data(); }
  Index width() const { return width_; }
  /// The kept head outputs of one query in cell 1 or later.
  const float* kept(Index cell, Index query) const {
    return kept_.data() + ((cell - 1) * layer_.queries() + query) * width_;
  }
  double evicted_mass(Index cell) const { return evicted_mass_.col(cell).sum(); }

  void compute(int threads) {
    const Index queries_per_task = std::clamp<Index>(kRowsPerTask / layer_.geometry.group(), 1, layer_.queries());
    const Index blocks = (layer_.queries() + queries_per_task - 1) / queries_per_task;
    evicted_mass_ = Matrix::Zero(layer_.geometry.kv_heads * blocks, cells_);
    std::vector<Buffer<float>> logits(static_cast<std::size_t>(threads));
    parallel_for(threads, layer_.geometry.kv_heads * blocks, [&](Index task, std::size_t worker) {
      const Index first = task % blocks * queries_per_task;
      compute_task(task, task / blocks, first, std::min(queries_per_task, layer_.queries() - first), logits[worker]);
    });
  }

  /// Squared norms of the query heads' parts of every cell, over all queries: [cells, query_heads].
  Matrix head_squares(int threads) const {
    Matrix squares(cells_, layer_.geometry.query_heads);
    parallel_for(threads, cells_, [&](Index cell) {
      for (Index head = 0; head < squares.cols(); ++head) squares(cell, head) = head_square(cell, head);
    });
    return squares;
  }

 private:
  double head_square(Index cell, Index head) const {
    double square = 0;
    for (Index query = 0; query < layer_.queries(); ++query) {
      const float* part =
          values_.data() + (cell * layer_.queries() + query) * width_ + head * layer_.geometry.value_size;
      for (Index c = 0; c < layer_.geometry.value_size; ++c) square += static_cast<double>(part[c]) * part[c];
    }
    return square;
  }

  void compute_task(Index task, Index kv_head, Index first_query, Index queries, Buffer<float>& scratch) {
    const Index group = layer_.geometry.group(), value_size = layer_.geometry.value_size;
    const QueryRows rows(layer_, kv_head * group, group, first_query, queries, queries);
    float* logits = scratch.at_least(layer_.tokens * rows.stride());
    rows.logits(0, layer_.tokens, logits);
    const LogitTable table{rows, logits, layer_.v.data<float>() + kv_head * layer_.tokens * value_size, value_size};
    const std::vector<double> sinks = sinks_of(layer_, kv_head);
    const Index offset = first_query * width_ + kv_head * group * value_size;
    float* first = values_.data() + offset;
    write_exact(table, sinks, first);

    Index cell = 1;
    for (const LayerKeep& keep : policies_) {
      const Index cell_stride = layer_.queries() * width_;
      const DeltaTarget target{first + cell * cell_stride, kept_.data() + offset + (cell - 1) * cell_stride,
                               cell_stride, width_};
      if (!keep.lifetimes.empty()) {
        const std::span positions(&layer_.query_positions[first_query], static_cast<std::size_t>(queries));
        walk_decoding(table, positions, keep.lifetimes[kv_head], sinks, mode_, target, &evicted_mass_(task, cell));
        ++cell;
        continue;
      }
      std::vector<Index> counts;
      for (const auto& of_budget : keep.counts) counts.push_back(of_budget[kv_head]);
      walk(table, layer_.context_length, layer_.tokens, keep.rankings[kv_head], counts, sinks, mode_, target,
           &evicted_mass_(task, cell));
      cell += static_cast<Index>(counts.size());
    }
  }

  /// The output of plain attention over all tokens, in their natural order: no policy has a say in it.
  void write_exact(const LogitTable& table, const std::vector<double>& sinks, float* first) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(layer_.tokens));
    std::iota(all.begin(), all.end(), 0);
    const PartialSoftmax sums = sum_over(table, all);
    for (Index head = 0; head < table.rows.heads(); ++head) {
      for (Index query = 0; query < table.rows.queries(); ++query) {
        const Index row = head * table.rows.head_stride() + query;
        const double sink = sinks.empty() ? 0 : std::exp(sinks[head] - sums.maximum[row]);
        const float factor = static_cast<float>(1 / (sums.sum[row] + sink));
        for (Index c = 0; c < table.value_size; ++c) {
          first[query * width_ + head * table.value_size + c] =
              factor * sums.values[row * padded(table.value_size) + c];
        }
      }
    }
  }

  const LayerTensors& layer_;
  std::span<const LayerKeep> policies_;
  SoftmaxMode mode_;
  Index cells_, width_ = 0;
  Buffer<float> values_;  ///< [cells, n, width]: exact head outputs, then differences to them
  Buffer<float> kept_;    ///< [cells - 1, n, width]: the kept head outputs
  Matrix evicted_mass_;   ///< [task, cell]
};

/// ||A_h[:, i]|| ||v_i W_O^h|| over the judged queries: what evicting i adds to the bound. [query_heads, C]
Matrix bound_terms(const LayerTensors& layer, int threads) {
  const Matrix norms = column_statistics(layer, 0, layer.queries(), threads).squares.cwiseSqrt();
  return norms.cwiseProduct(value_norms(layer, threads));
}

void check_finite(const Matrix& exact, const LayerTensors& layer) {
  if (exact.allFinite()) return;
  throw BackendError(
      fmt::format("layer {}: the exact output is not finite: the tensors leave the range of float32; --backend "
                  "reference computes in float64",
                  layer.layer));
}

/// Sums the kept outputs of some queries of some cells themselves.
class CancelledRows {
 public:
  CancelledRows(const LayerTensors& layer, const HeadOutputs& heads) : layer_(layer), heads_(heads) {}

  void add(Index cell, const std::vector<Index>& queries, OutputError& error) {
    for (const Index query : queries) rows_.push_back({cell, query, &error});
  }

  void sum(const Matrix& exact, int threads) const {
    if (rows_.empty()) return;
    Buffer<float> x(static_cast<Index>(rows_.size()) * heads_.width());
    std::vector<Index> queries;
    for (const Row& row : rows_) {
      std::copy_n(heads_.kept(row.cell, row.query), heads_.width(),
                  x.data() + static_cast<Index>(queries.size()) * heads_.width());
      queries.push_back(row.query);
    }
    const KeptSums sums = project_kept(layer_, x, queries, exact, threads);
    for (std::size_t n = 0; n < rows_.size(); ++n) {
      rows_[n].error->kept_square[rows_[n].query] = sums.squares[n];
      rows_[n].error->kept_product[rows_[n].query] = sums.products[n];
    }
  }

 private:
  struct Row {
    Index cell, query;
    OutputError* error;
  };
  const LayerTensors& layer_;
  const HeadOutputs& heads_;
  std::vector<Row> rows_;
};

void add_batch_errors(const LayerTensors& layer, std::span<const LayerKeep> policies, SoftmaxMode mode, int threads,
                      LayerErrors& result) {
  HeadOutputs heads(layer, policies, mode);
  heads.compute(threads);
  const Projected projected = project(layer, heads.values(), heads.cells(), layer.queries(), threads);
  check_finite(projected.exact, layer);
  result.exact.output = projected.exact;
  const Matrix head_squares = heads.head_squares(threads);
  result.exact.head_norm.assign(head_squares.row(0).begin(), head_squares.row(0).end());
  const double rows = static_cast<double>(layer.geometry.query_heads * layer.queries());
  CancelledRows cancelled(layer, heads);
  Index cell = 1;
  for (const LayerKeep& keep : policies) {
    auto& errors = result.errors.emplace_back(keep.counts.size());
    for (OutputError& error : errors) {
      const auto squares = projected.squares.row(cell), products = projected.products.row(cell);
      error.query_error.assign(squares.begin(), squares.end());
      cancelled.add(cell,
                    set_kept_sums(projected.exact, {products.data(), static_cast<std::size_t>(products.size())}, error),
                    error);
      error.head_error.assign(head_squares.row(cell).begin(), head_squares.row(cell).end());
      error.retained_mass = 1 - heads.evicted_mass(cell) / rows;
      ++cell;
    }
  }
  cancelled.sum(projected.exact, threads);
}

}  // namespace

LayerErrors layer_errors(const LayerTensors& layer, const std::vector<LayerKeep>& policies, SoftmaxMode mode,
                         int threads) {
  LayerErrors result;
  for_each_batch(policies, cells_per_batch(layer),
                 [&](std::span<const LayerKeep> batch) { add_batch_errors(layer, batch, mode, threads, result); });

  if (mode == SoftmaxMode::truncated) {
    set_bounds(bound_terms(layer, threads), layer.geometry.group(), policies, result);
  }
  return result;
}

}  // namespace laprox::cpu
