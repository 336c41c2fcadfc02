#include "backends/cuda/errors.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "backends/batches.h"
#include "backends/cuda/pieces.h"
#include "backends/cuda/scoring.h"
#include "base/buffer.h"
#include "laprox/error.h"

namespace laprox::cuda {

namespace {

std::size_t elements(Index rows, Index columns) { return static_cast<std::size_t>(rows * columns); }

/// The head outputs of some policies' cells behind the exact ones (cell 0), for all judged queries of a layer.
class HeadOutputs {
 public:
  HeadOutputs(const Layer& layer, std::span<const LayerKeep> policies, SoftmaxMode mode, cudaStream_t stream)
      : layer_(layer), policies_(policies), truncated_(mode == SoftmaxMode::truncated), stream_(stream) {
    for (const LayerKeep& keep : policies) {
      cells_ += static_cast<Index>(keep.counts.size());
      largest_ = std::max(largest_, static_cast<Index>(keep.counts.size()));
    }
    width_ = Index{layer.query_heads} * layer.value_size;
    values_ = DeviceBuffer<float>(elements(cells_ * layer.queries, width_));
    kept_ = DeviceBuffer<float>(elements((cells_ - 1) * layer.queries, width_));
    shares_ = DeviceBuffer<double>(elements(cells_, rows()));
  }

  Index cells() const { return cells_; }
  Index rows() const { return Index{layer_.query_heads} * layer_.queries; }
  const float* values() const { return values_.data(); }
  const float* kept() const { return kept_.data(); }
  Index width() const { return width_; }
  const float* cell(Index cell) const { return values_.data() + cell * layer_.queries * width_; }

  void compute() {
    const QueryRange first_range{0, std::min(layer_.queries, queries_per_table())};
    Pieces first_pieces(layer_, first_range, largest_, stream_);
    DeviceBuffer<float> logits(elements(layer_.tokens, RowLayout(layer_, first_range).rows()));
    for (int first = 0; first < layer_.queries; first += first_range.count) {
      const QueryRange range{first, std::min(first_range.count, layer_.queries - first)};
      Pieces pieces = first == 0 ? std::move(first_pieces) : Pieces(layer_, range, largest_, stream_);
      for (int kv_head = 0; kv_head < layer_.kv_heads; ++kv_head) {
        logit_table(layer_, range, kv_head, logits.data(), stream_);
        compute_table(pieces, range, kv_head, logits.data());
      }
    }
  }

  /// The evicted weight of each cell, summed over query heads and queries; cell 0 is the exact output.
  std::vector<double> evicted_mass() const {
    if (cells_ == 1) return {0.0};
    Buffer<double> host((cells_ - 1) * rows());
    download(host.data(), shares_.data(), static_cast<std::size_t>(host.size()), stream_);
    std::vector<double> mass{0.0};
    for (Index cell = 1; cell < cells_; ++cell) {
      mass.push_back(Eigen::Map<const Eigen::VectorXd>(host.data() + (cell - 1) * rows(), rows()).sum());
    }
    return mass;
  }

 private:
  int queries_per_table() const {
    const int resident = RowLayout(layer_, {0, layer_.queries}).resident;
    return std::max(1, static_cast<int>(kRowsPerTask) / layer_.group / resident) * resident;
  }

  void compute_table(Pieces& pieces, QueryRange range, int kv_head, const float* logits) {
    const Index offset = range.first * width_ + Index{kv_head} * layer_.group * layer_.value_size;
    const long long stride = layer_.queries * width_;
    pieces.exact(kv_head, logits, {values_.data() + offset, nullptr, stride, width_});
    Index cell = 1;
    for (const LayerKeep& keep : policies_) {
      std::vector<Index> counts;
      for (const auto& of_budget : keep.counts) counts.push_back(of_budget[static_cast<std::size_t>(kv_head)]);
      double* shares =
          shares_.data() + (cell - 1) * rows() + Index{kv_head} * layer_.group * layer_.queries + range.first;
      pieces.walk(
          kv_head, logits, keep.rankings[static_cast<std::size_t>(kv_head)], counts, truncated_,
          {values_.data() + cell * stride + offset, kept_.data() + (cell - 1) * stride + offset, stride, width_},
          {shares, rows(), layer_.queries});
      cell += static_cast<Index>(counts.size());
    }
  }

  const Layer& layer_;
  std::span<const LayerKeep> policies_;
  bool truncated_;
  cudaStream_t stream_;
  Index cells_ = 1, largest_ = 0, width_ = 0;
  DeviceBuffer<float> values_;   ///< [cells, queries, width]: exact head outputs, then differences to them
  DeviceBuffer<float> kept_;     ///< [cells - 1, queries, width]: the kept head outputs
  DeviceBuffer<double> shares_;  ///< [cells - 1, query_heads, queries]: of cell 1 and on
};

DeviceBuffer<float> on_device(const std::vector<double>& bias, cudaStream_t stream) {
  const std::vector<float> values(bias.begin(), bias.end());
  DeviceBuffer<float> buffer(values.size());
  upload(buffer.data(), values.data(), values.size(), stream);
  check(cudaStreamSynchronize(stream), "waiting for the device");
  return buffer;
}

/// The exact output [n, D] in device memory.
DeviceBuffer<float> project(const Layer& layer, const DeviceBuffer<float>& bias, const float* heads,
                            cudaStream_t stream) {
  DeviceBuffer<float> exact(elements(layer.queries, layer.model_size));
  project_exact(layer, heads, layer.queries, bias.data(), exact.data(), stream);
  check(cudaStreamSynchronize(stream), "waiting for the device");
  return exact;
}

void check_finite(const Matrix& exact, Index layer) {
  if (exact.allFinite()) return;
  throw BackendError(
      fmt::format("layer {}: the exact output is not finite: the tensors leave the range of float32; --backend "
                  "reference computes in float64",
                  layer));
}

/// Sums the kept outputs of some queries of some cells themselves.
class CancelledRows {
 public:
  explicit CancelledRows(Index queries) : queries_(queries) {}

  void add(Index cell, const std::vector<Index>& queries, OutputError& error) {
    for (const Index query : queries) {
      rows_.push_back(static_cast<int>((cell - 1) * queries_ + query));
      row_queries_.push_back(static_cast<int>(query));
      errors_.push_back(&error);
    }
  }

  void sum(const Layer& layer, const HeadOutputs& heads, const DeviceBuffer<float>& bias,
           const DeviceBuffer<float>& exact, DeviceBuffer<double2>& partial, cudaStream_t stream) const {
    if (rows_.empty()) return;
    const int count = static_cast<int>(rows_.size());
    DeviceBuffer<int> rows(rows_.size()), row_queries(rows_.size());
    upload(rows.data(), rows_.data(), rows_.size(), stream);
    upload(row_queries.data(), row_queries_.data(), rows_.size(), stream);
    DeviceBuffer<float> kept(elements(count, heads.width()));
    gather_rows(heads.kept(), rows.data(), count, static_cast<int>(heads.width()), kept.data(), stream);
    DeviceBuffer<double2> sums(rows_.size());
    project_kept(layer, kept.data(), count, bias.data(), exact.data(), row_queries.data(), partial, sums.data(),
                 stream);
    Buffer<double2> host(count);
    download(host.data(), sums.data(), sums.size(), stream);
    for (std::size_t n = 0; n < rows_.size(); ++n) {
      const auto query = static_cast<std::size_t>(row_queries_[n]);
      errors_[n]->kept_square[query] = host[static_cast<Index>(n)].x;
      errors_[n]->kept_product[query] = host[static_cast<Index>(n)].y;
    }
  }

 private:
  Index queries_;
  std::vector<int> rows_, row_queries_;  ///< of the kept head outputs, and the query of each
  std::vector<OutputError*> errors_;
};

void add_batch_errors(const LayerTensors& tensors, const Layer& layer, std::span<const LayerKeep> policies,
                      SoftmaxMode mode, int threads, cudaStream_t stream, LayerErrors& result) {
  HeadOutputs heads(layer, policies, mode, stream);
  heads.compute();
  const Index cells = heads.cells(), queries = layer.queries, query_heads = layer.query_heads;
  const DeviceBuffer<float> bias = on_device(tensors.bias, stream);
  const DeviceBuffer<float> exact = project(layer, bias, heads.values(), stream);
  result.exact.output = download_matrix(exact.data(), queries, layer.model_size, threads, stream);
  check_finite(result.exact.output, tensors.layer);

  DeviceBuffer<double> squares(elements(cells, query_heads));
  head_squares(layer, heads.values(), static_cast<int>(cells), layer.queries, squares.data(), stream);
  Matrix head_square(cells, query_heads);
  download(head_square.data(), squares.data(), squares.size(), stream);
  result.exact.head_norm.assign(head_square.row(0).begin(), head_square.row(0).end());
  if (cells == 1) {
    result.errors.resize(result.errors.size() + policies.size());
    return;
  }
  const Index rows = (cells - 1) * queries;
  DeviceBuffer<double2> partial, sums(static_cast<std::size_t>(rows));
  project_errors(layer, heads.cell(1), static_cast<int>(rows), exact.data(), layer.queries, partial, sums.data(),
                 stream);
  Buffer<double2> row_sums(rows);
  download(row_sums.data(), sums.data(), sums.size(), stream);
  const std::vector<double> evicted = heads.evicted_mass();

  CancelledRows cancelled(queries);
  Index cell = 1;
  for (const LayerKeep& keep : policies) {
    for (OutputError& error : result.errors.emplace_back(keep.counts.size())) {
      std::vector<double> products;
      for (Index query = 0; query < queries; ++query) {
        error.query_error.push_back(row_sums[(cell - 1) * queries + query].x);
        products.push_back(row_sums[(cell - 1) * queries + query].y);
      }
      cancelled.add(cell, set_kept_sums(result.exact.output, products, error), error);
      error.head_error.assign(head_square.row(cell).begin(), head_square.row(cell).end());
      error.retained_mass = 1 - evicted[static_cast<std::size_t>(cell)] / static_cast<double>(query_heads * queries);
      ++cell;
    }
  }
  cancelled.sum(layer, heads, bias, exact, partial, stream);
}

/// ||A_h[:, i]|| ||v_i W_O^h|| over the judged queries: what evicting i adds to the bound. [query_heads, C]
Matrix bound_terms(const Layer& layer, int threads, cudaStream_t stream) {
  const QueryRange range{0, layer.queries};
  DeviceBuffer<float2> partial;
  DeviceBuffer<RowSoftmax> softmax;
  row_softmax(layer, range, partial, softmax, stream);
  DeviceBuffer<float> squares(elements(layer.query_heads, layer.context));
  window_columns(layer, range, softmax.data(), nullptr, squares.data(), stream);
  const Matrix norms = download_matrix(squares.data(), layer.query_heads, layer.context, threads, stream).cwiseSqrt();
  return norms.cwiseProduct(value_norms(layer, threads, stream));
}

}  // namespace

LayerErrors layer_errors(const LayerTensors& layer, const std::vector<LayerKeep>& policies, SoftmaxMode mode,
                         int threads) {
  const Stream stream;
  const UsePool pool(stream);
  const DeviceLayer device_layer(layer, threads, stream);
  const Layer& view = device_layer.view();
  LayerErrors result;
  for_each_batch(policies, cells_per_batch(layer), [&](std::span<const LayerKeep> batch) {
    add_batch_errors(layer, view, batch, mode, threads, stream, result);
  });

  if (mode == SoftmaxMode::truncated) {
    set_bounds(bound_terms(view, threads, stream), layer.geometry.group(), policies, result);
  }
  return result;
}

}  // namespace laprox::cuda
