#include "backends/cuda/scoring.h"

#include <algorithm>
#include <cmath>

#include "backends/cuda/pieces.h"
#include "backends/cuda/removal.h"
#include "backends/far_queries.h"
#include "backends/sink_weight.h"
#include "base/buffer.h"
#include "base/parallel.h"
#include "laprox/error.h"

namespace laprox::cuda {

namespace {

/// Host memory for the tables of several KV heads that are visited together.
constexpr std::size_t kVisitedBytes = std::size_t{256} << 20;

std::size_t elements(Index rows, Index columns) { return static_cast<std::size_t>(rows * columns); }

/// v_i W^a (W^b)^T v_i^T for pairs of query heads, `per_kv_head` of each KV head: [pairs, C].
Matrix forms_of(const Layer& layer, const std::vector<FormPair>& pairs, int per_kv_head, bool square_root, int threads,
                cudaStream_t stream) {
  const int count = static_cast<int>(pairs.size());
  DeviceBuffer<FormPair> on_device(pairs.size());
  upload(on_device.data(), pairs.data(), pairs.size(), stream);
  PackedForms forms;
  pack_forms(layer, on_device.data(), count, forms, stream);
  DeviceBuffer<float> out(elements(count, layer.context));
  value_forms(layer, forms, per_kv_head, square_root, out.data(), stream);
  return download_matrix(out.data(), count, layer.context, threads, stream);
}

}  // namespace

Matrix download_matrix(const float* source, Index rows, Index columns, int threads, cudaStream_t stream) {
  Buffer<float> host(rows * columns);
  download(host.data(), source, elements(rows, columns), stream);
  const MatrixView<float> view(host.data(), rows, columns);
  Matrix matrix(rows, columns);
  parallel_for(threads, rows, [&](Index row) { matrix.row(row) = view.row(row).cast<double>(); });
  return matrix;
}

Matrix value_norms(const Layer& layer, int threads, cudaStream_t stream) {
  std::vector<FormPair> pairs;
  for (int head = 0; head < layer.query_heads; ++head) pairs.push_back({head, head});
  return forms_of(layer, pairs, layer.group, true, threads, stream);
}

Scoring::Working Scoring::start() {
  return {UseDevice(device_), UsePool(stream_), layer_on_device()};  // one after the other
}

const Layer& Scoring::layer_on_device() {
  if (!device_layer_) device_layer_ = std::make_unique<DeviceLayer>(layer_, threads_, stream_);
  return device_layer_->view();
}

QueryRange Scoring::window_queries(Index window) const {
  const Index queries = std::min(window, std::max(layer_.context_length, layer_.queries()));
  require(queries <= layer_.queries(), "the layer was read with the queries that its scorers need");
  return {static_cast<int>(layer_.queries() - queries), static_cast<int>(queries)};
}

WindowStatistics Scoring::compute_window_statistics(Index window) {
  const Working working = start();
  const Layer& layer = working.layer;
  const QueryRange range = window_queries(window);
  row_softmax(layer, range, partial_, softmax_, stream_);
  DeviceBuffer<float> sums(elements(layer.query_heads, layer.context)), squares(sums.size());
  window_columns(layer, range, softmax_.data(), sums.data(), squares.data(), stream_);
  return {download_matrix(sums.data(), layer.query_heads, layer.context, threads_, stream_),
          download_matrix(squares.data(), layer.query_heads, layer.context, threads_, stream_)};
}

Matrix Scoring::compute_window_products(Index window) {
  const Working working = start();
  const Layer& layer = working.layer;
  const QueryRange range = window_queries(window);
  const RowLayout rows(layer, range);
  const Index pairs = Index{layer.group} * layer.group;
  DeviceBuffer<float> table(elements(layer.tokens, rows.rows()));
  DeviceBuffer<float> products(elements(layer.kv_heads * pairs, layer.context));
  for (int kv_head = 0; kv_head < layer.kv_heads; ++kv_head) {
    logit_table(layer, range, kv_head, table.data(), stream_);
    to_weights(layer, range, kv_head, table.data(), partial_, stream_);
    weight_products(layer, range, table.data(), products.data() + kv_head * pairs * layer.context, stream_);
  }
  return download_matrix(products.data(), layer.kv_heads * pairs, layer.context, threads_, stream_);
}

Matrix Scoring::compute_column_sums() {
  require(layer_.queries() == layer_.context_length, "column sums read every prompt query");
  const Working working = start();
  const Layer& layer = working.layer;
  row_softmax(layer, {0, layer.queries}, partial_, softmax_, stream_);
  DeviceBuffer<float> sums(elements(layer.query_heads, layer.context));
  all_columns(layer, softmax_.data(), sums.data(), stream_);
  return download_matrix(sums.data(), layer.query_heads, layer.context, threads_, stream_);
}

void Scoring::visit_heads(Index window, const HeadVisitor& visit) {
  const Working working = start();
  const Layer& layer = working.layer;
  const QueryRange range = window_queries(window);
  const RowLayout rows(layer, range);
  const std::size_t size = elements(layer.tokens, rows.rows());
  const std::size_t width = elements(layer.group, layer.value_size);
  DeviceBuffer<float> table(size), outputs(static_cast<std::size_t>(range.count) * width);
  // So many KV heads at a time that every thread has a query head to visit, as far as memory goes.
  const Index wanted = std::min<Index>(layer.kv_heads, (threads_ + layer.group - 1) / layer.group);
  const auto fitting = static_cast<Index>(kVisitedBytes / (2 * sizeof(float) * size));
  const Index at_once = std::max<Index>(1, std::min(wanted, fitting));
  const auto head_size = static_cast<Index>(size), output_size = static_cast<Index>(outputs.size());
  Buffer<float> logits(at_once * head_size), weights(at_once * head_size), head_outputs(at_once * output_size);
  Pieces pieces(layer, range, 0, stream_);
  for (Index first = 0; first < layer.kv_heads; first += at_once) {
    const Index count = std::min(at_once, layer.kv_heads - first);
    for (Index n = 0; n < count; ++n) {
      const auto kv_head = static_cast<int>(first + n);
      logit_table(layer, range, kv_head, table.data(), stream_);
      pieces.exact(kv_head, table.data(), {outputs.data(), nullptr, 0, static_cast<long long>(width)});
      download(logits.data() + n * head_size, table.data(), size, stream_);
      to_weights(layer, range, kv_head, table.data(), partial_, stream_);
      download(weights.data() + n * head_size, table.data(), size, stream_);
      download(head_outputs.data() + n * output_size, outputs.data(), outputs.size(), stream_);
    }
    parallel_for(threads_, count * layer.group, [&](Index head) {
      const Index n = head / layer.group;
      visit_head(logits.data() + n * head_size, weights.data() + n * head_size, head_outputs.data() + n * output_size,
                 range, first + n, head % layer.group, visit);
    });
  }
}

/// One head's part of the tables [T, rows] and of the outputs [queries, group * d_v], in float64.
void Scoring::visit_head(const float* logits, const float* weights, const float* outputs, QueryRange range,
                         Index kv_head, Index head_in_group, const HeadVisitor& visit) const {
  const Layer& layer = device_layer_->view();
  const RowLayout rows(layer, range);
  const Index queries = range.count, context = layer.context, stride = rows.rows(), value_size = layer.value_size;
  const Index head = kv_head * layer.group + head_in_group;
  const auto row_of = [&](Index query) {
    return rows.row(static_cast<int>(head_in_group), layer.group, static_cast<int>(query));
  };
  // Tokens [begin, end) of a table, a few at a time, whose rows stay in the cache while the table is turned.
  const auto turned = [&](const float* table, Index begin, Index end) {
    constexpr Index kTokens = 64;
    Matrix matrix(queries, end - begin);
    for (Index first = begin; first < end; first += kTokens) {
      const Index last = std::min(end, first + kTokens);
      for (Index query = 0; query < queries; ++query) {
        const float* column = table + row_of(query);
        for (Index token = first; token < last; ++token) matrix(query, token - begin) = column[token * stride];
      }
    }
    return matrix;
  };
  HeadAttention attention{turned(weights, 0, context), turned(logits, 0, context), Matrix(queries, value_size),
                          turned(weights, context, layer.tokens), Eigen::ArrayXd::Zero(queries)};
  attention.logits = attention.logits.array().isFinite().select(attention.logits, 0.0).eval();
  for (Index query = 0; query < queries; ++query) {
    for (Index c = 0; c < value_size; ++c) {
      attention.outputs(query, c) = outputs[(query * layer.group + head_in_group) * value_size + c];
    }
    if (!layer.sinks) continue;
    double total = 0;
    Index largest = row_of(query);
    for (Index at = largest; at < layer.tokens * stride; at += stride) {
      total += weights[at];
      if (weights[at] > weights[largest]) largest = at;
    }
    const double sink = layer_.attention.sinks[static_cast<std::size_t>(head)];
    attention.sink_weights[query] = sink_weight(total, weights[largest], logits[largest], sink);
  }
  visit(head, attention);
}

Matrix Scoring::compute_value_norms() {
  const Working working = start();
  return cuda::value_norms(working.layer, threads_, stream_);
}

Matrix Scoring::compute_value_l1_norms() {
  const Working working = start();
  const Layer& layer = working.layer;
  Matrix norms(layer.query_heads, layer.context);
  DeviceBuffer<double2> partial, sums(static_cast<std::size_t>(layer.context));
  Buffer<double2> host(layer.context);
  for (int head = 0; head < layer.query_heads; ++head) {
    value_absolute_sums(layer, head, partial, sums.data(), stream_);
    download(host.data(), sums.data(), sums.size(), stream_);
    for (Index i = 0; i < layer.context; ++i) norms(head, i) = host[i].x;
  }
  return norms;
}

Matrix Scoring::compute_value_products() {
  const Working working = start();
  const Layer& layer = working.layer;
  const Index group = layer.group;
  std::vector<FormPair> pairs;
  for (int kv_head = 0; kv_head < layer.kv_heads; ++kv_head) {
    for (int a = 0; a < layer.group; ++a) {
      for (int b = a; b < layer.group; ++b) pairs.push_back({kv_head * layer.group + a, kv_head * layer.group + b});
    }
  }
  const Matrix forms = forms_of(layer, pairs, layer.group * (layer.group + 1) / 2, false, threads_, stream_);
  Matrix products(layer.kv_heads * group * group, layer.context);
  for (std::size_t p = 0; p < pairs.size(); ++p) {
    // <v W^a, v W^b> = <v W^b, v W^a>
    const Index kv_head = pairs[p].a / group, a = pairs[p].a % group, b = pairs[p].b % group;
    products.row((kv_head * group + a) * group + b) = forms.row(static_cast<Index>(p));
    products.row((kv_head * group + b) * group + a) = forms.row(static_cast<Index>(p));
  }
  return products;
}

Matrix Scoring::compute_removal_energies(Index window, OverQueries over, bool joint) {
  const Working working = start();
  const Layer& layer = working.layer;
  DeviceBuffer<double> energies(elements(layer.kv_heads, layer.context));
  RemovalScratch scratch;
  cuda::removal_energies(layer, window_queries(window), over == OverQueries::maximum, joint, energies.data(), scratch,
                         stream_);
  Matrix host(layer.kv_heads, layer.context);
  download(host.data(), energies.data(), energies.size(), stream_);
  return host;
}

Matrix Scoring::compute_far_energies(Index distance, Index queries) {
  const auto count = static_cast<int>(far_queries(layer_, queries));
  const Working working = start();
  const Layer& layer = working.layer;
  DeviceBuffer<double> energies(elements(layer.kv_heads, layer.context));
  RemovalScratch scratch;
  cuda::far_energies(layer, static_cast<int>(distance), count, energies.data(), scratch, stream_);
  Matrix host(layer.kv_heads, layer.context);
  download(host.data(), energies.data(), energies.size(), stream_);
  return host;
}

}  // namespace laprox::cuda
