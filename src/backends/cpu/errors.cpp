#include "backends/cpu/errors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
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
    std::vector<Scratch> scratch(static_cast<std::size_t>(threads));
    parallel_for(threads, layer_.geometry.kv_heads * blocks, [&](Index task, std::size_t worker) {
      const Index first = task % blocks * queries_per_task;
      compute_task(task, task / blocks, first, std::min(queries_per_task, layer_.queries() - first), scratch[worker]);
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
  /// One worker's block of logits and of weights.
  struct Scratch {
    Buffer<float> logits, weights;
  };

  double head_square(Index cell, Index head) const {
    double square = 0;
    for (Index query = 0; query < layer_.queries(); ++query) {
      const float* part =
          values_.data() + (cell * layer_.queries() + query) * width_ + head * layer_.geometry.value_size;
      for (Index c = 0; c < layer_.geometry.value_size; ++c) square += static_cast<double>(part[c]) * part[c];
    }
    return square;
  }

  void compute_task(Index task, Index kv_head, Index first_query, Index queries, Scratch& scratch) {
    const Index group = layer_.geometry.group(), value_size = layer_.geometry.value_size;
    const QueryRows rows(layer_, kv_head * group, group, first_query, queries, queries);
    const std::span positions(&layer_.query_positions[first_query], static_cast<std::size_t>(queries));
    SegmentSums exact(1, rows, value_size);
    const auto walks = start_walks(rows, kv_head, positions);
    each_block(rows, kv_head, scratch, [&](const WeightBlock& block, std::span<const std::int32_t> all) {
      exact.add(0, block, all);
      for (const auto& walk : walks) walk->add(block);
    });
    const std::vector<double> sinks = sinks_of(layer_, kv_head);
    const Index offset = first_query * width_ + kv_head * group * value_size;
    write_exact(rows, exact.sums()[0], sinks, values_.data() + offset);
    const Index cell_stride = layer_.queries() * width_;
    Index cell = 1;
    for (std::size_t p = 0; p < walks.size(); ++p) {
      walks[p]->write({sinks, mode_, values_.data() + offset + cell * cell_stride,
                       kept_.data() + offset + (cell - 1) * cell_stride, cell_stride, width_,
                       &evicted_mass_(task, cell)});
      cell += static_cast<Index>(policies_[p].counts.size());
    }
  }

  std::vector<std::unique_ptr<Walk>> start_walks(const QueryRows& rows, Index kv_head,
                                                 std::span<const Index> positions) const {
    const Index value_size = layer_.geometry.value_size;
    std::vector<std::unique_ptr<Walk>> walks;
    for (const LayerKeep& keep : policies_) {
      if (!keep.lifetimes.empty()) {
        walks.push_back(std::make_unique<DecodingWalk>(rows, value_size, positions, keep.lifetimes[kv_head]));
        continue;
      }
      std::vector<Index> counts;
      for (const auto& of_budget : keep.counts) counts.push_back(of_budget[kv_head]);
      walks.push_back(std::make_unique<RankedWalk>(rows, value_size, layer_.context_length, layer_.tokens,
                                                   keep.rankings[kv_head], counts));
    }
    return walks;
  }

  /// Calls visit(block, its tokens: 0, 1, ...) for one stretch of tokens after the other.
  template <class Visit>
  void each_block(const QueryRows& rows, Index kv_head, Scratch& scratch, const Visit& visit) const {
    const Index value_size = layer_.geometry.value_size, most = std::min(kBlockTokens, layer_.tokens);
    float* logits = scratch.logits.at_least(most * rows.stride());
    float* weights = scratch.weights.at_least(most * rows.stride());
    Buffer<float> maximum(rows.stride());
    std::vector<std::int32_t> all(static_cast<std::size_t>(most));
    std::iota(all.begin(), all.end(), 0);
    for (Index first = 0; first < layer_.tokens; first += most) {
      const Index last = std::min(layer_.tokens, first + most);
      rows.logits(first, last, logits);
      form_weights(logits, last - first, rows.stride(), maximum.data(), weights);
      const float* values = layer_.v.data<float>() + (kv_head * layer_.tokens + first) * value_size;
      visit(WeightBlock{rows, first, last, logits, weights, maximum.data(), values, value_size},
            std::span(all).first(static_cast<std::size_t>(last - first)));
    }
  }

  /// The output of plain attention over all tokens: no policy has a say in it.
  void write_exact(const QueryRows& rows, const PartialSoftmax& sums, const std::vector<double>& sinks, float* first) {
    const Index value_size = layer_.geometry.value_size;
    for (Index head = 0; head < rows.heads(); ++head) {
      for (Index query = 0; query < rows.queries(); ++query) {
        const Index row = head * rows.head_stride() + query;
        const double sink = sinks.empty() ? 0 : std::exp(sinks[head] - sums.maximum[row]);
        const float factor = static_cast<float>(1 / (sums.sum[row] + sink));
        for (Index c = 0; c < value_size; ++c) {
          first[query * width_ + head * value_size + c] = factor * sums.values[row * padded(value_size) + c];
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
