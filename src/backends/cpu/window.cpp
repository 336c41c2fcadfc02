#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/cpu/logits.h"
#include "backends/cpu/scoring.h"
#include "base/parallel.h"
#include "laprox/error.h"

namespace laprox::cpu {

namespace {

constexpr Index kTokenBlock = 256;
/// Tokens whose exponentials are added up on their own before they join the others: one long chain of float32 additions
/// would lose what many small weights beside a large one amount to.
constexpr Index kRun = 16;
/// Query rows that one task takes: enough to keep the product efficient, few enough to spread wide groups over threads.
constexpr Index kRowsPerTask = 128;

/// Running maximum and sum of exp(logit - maximum) per query row: the softmax denominator, found in one pass.
class RowSoftmax {
 public:
  RowSoftmax(const LayerTensors& layer, const QueryRows& rows, Index first_head)
      : sinks_(layer.attention.sinks), maximum_(rows.stride()), sum_(rows.stride()) {
    for (Index r = 0; r < rows.stride(); ++r) {
      const Index head = first_head + std::min(r / rows.head_stride(), rows.heads() - 1);
      maximum_[r] = sinks_.empty() ? -std::numeric_limits<float>::infinity() : static_cast<float>(sinks_[head]);
      sum_[r] = sinks_.empty() ? 0.0F : 1.0F;
    }
  }

  void add(const float* logits, Index tokens, Index stride) {
    for (Index r = 0; r < stride; r += kLanes) {
      const Lanes before = load(&maximum_[r]);
      Lanes now = before;
      for (Index i = 0; i < tokens; ++i) now = max(now, load(logits + i * stride + r));
      // A row that has seen no key yet keeps -infinity; subtracting 0 instead leaves its exponentials 0.
      const Lanes shift = select(now == -std::numeric_limits<float>::infinity(), Lanes{}, now);
      Lanes block{};
      for (Index first = 0; first < tokens; first += kRun) {
        Lanes run{};
        const Index last = std::min(tokens, first + kRun);
        for (Index i = first; i < last; ++i) run += exp_nonpositive(load(logits + i * stride + r) - shift);
        block += run;
      }
      store(&maximum_[r], now);
      store(&sum_[r], load(&sum_[r]) * exp_nonpositive(before - shift) + block);
    }
  }

  const float* maximum() const { return maximum_.data(); }
  /// Of the first `queries` rows, which are one head's.
  Eigen::ArrayXd sink_weights(Index queries, Index head) const {
    if (sinks_.empty()) return Eigen::ArrayXd::Zero(queries);
    const auto sink = static_cast<float>(sinks_[head]);
    return Eigen::ArrayXd::NullaryExpr(queries, [&](Index r) { return std::exp(sink - maximum_[r]) / sum_[r]; });
  }
  /// 1 / sum of each real row, 0 of padding, whose weights thereby vanish.
  Buffer<float> inverse_sums(const QueryRows& rows) const {
    Buffer<float> inverse(rows.stride());
    for (Index r = 0; r < rows.stride(); ++r) {
      const bool real = r < rows.heads() * rows.head_stride() && r % rows.head_stride() < rows.queries();
      inverse[r] = real ? 1.0F / sum_[r] : 0.0F;
    }
    return inverse;
  }

 private:
  const std::vector<double>& sinks_;
  Buffer<float> maximum_, sum_;
};

/// Turns logits [count] into weights in place, given each row's maximum and inverse sum.
inline void to_weights(float* logits, Index count, const float* maximum, const float* inverse) {
  for (Index r = 0; r < count; r += kLanes) {
    store(logits + r, exp_nonpositive(load(logits + r) - load(maximum + r)) * load(inverse + r));
  }
}

/// Calls visit(token, weights, head_stride) for every context token with the attention weights that the stored queries
/// [first_query, first_query + queries) of some heads of one KV head give it; weights of padding rows are 0.
template <class Visit>
void visit_columns(const LayerTensors& layer, Index first_query, Index queries, Index first_head, Index heads,
                   Buffer<float>& scratch, const Visit& visit) {
  const Index head_stride = (queries + kLanes - 1) / kLanes * kLanes;
  const QueryRows rows(layer, first_head, heads, first_query, queries, head_stride);
  const Index stride = rows.stride();
  const Index tokens = layer.query_positions[first_query + queries - 1] + 1;

  float* logits = scratch.at_least(tokens * stride);
  RowSoftmax softmax(layer, rows, first_head);
  for (Index first = 0; first < tokens; first += kTokenBlock) {
    const Index last = std::min(tokens, first + kTokenBlock);
    rows.logits(first, last, logits + first * stride);
    softmax.add(logits + first * stride, last - first, stride);
  }
  const Buffer<float> inverse = softmax.inverse_sums(rows);
  const float* maximum = softmax.maximum();
  for (Index token = 0; token < layer.context_length; ++token) {
    float* weights = logits + token * stride;
    to_weights(weights, heads * head_stride, maximum, inverse.data());
    visit(token, weights, head_stride);
  }
}

/// The first of the last `window` stored queries.
Index window_begin(const LayerTensors& layer, Index window) {
  const Index queries = std::min(window, std::max(layer.context_length, layer.queries()));
  require(queries <= layer.queries(), "the layer was read with the queries that its scorers need");
  return layer.queries() - queries;
}

float dot(const float* a, const float* b, Index count) {
  Lanes products{};
  for (Index i = 0; i < count; i += kLanes) products += load(a + i) * load(b + i);
  return sum(products);
}

}  // namespace

WindowStatistics column_statistics(const LayerTensors& layer, Index first_query, Index queries, int threads) {
  const LayerGeometry& geometry = layer.geometry;
  WindowStatistics statistics{Matrix(geometry.query_heads, layer.context_length),
                              Matrix(geometry.query_heads, layer.context_length)};
  const Index heads_per_task = std::clamp<Index>(kRowsPerTask / queries, 1, geometry.group());
  const Index tasks_per_kv_head = (geometry.group() + heads_per_task - 1) / heads_per_task;
  std::vector<Buffer<float>> scratch(static_cast<std::size_t>(threads));
  parallel_for(threads, geometry.kv_heads * tasks_per_kv_head, [&](Index task, std::size_t worker) {
    const Index offset = task % tasks_per_kv_head * heads_per_task;
    const Index first_head = task / tasks_per_kv_head * geometry.group() + offset;
    const Index heads = std::min(heads_per_task, geometry.group() - offset);
    visit_columns(layer, first_query, queries, first_head, heads, scratch[worker],
                  [&](Index token, const float* weights, Index head_stride) {
                    for (Index head = 0; head < heads; ++head, weights += head_stride) {
                      Lanes sums{};
                      for (Index r = 0; r < head_stride; r += kLanes) sums += load(weights + r);
                      statistics.sum(first_head + head, token) = sum(sums);
                      statistics.squares(first_head + head, token) = dot(weights, weights, head_stride);
                    }
                  });
  });
  return statistics;
}

WindowStatistics window_statistics(const LayerTensors& layer, Index window, int threads) {
  const Index first = window_begin(layer, window);
  return column_statistics(layer, first, layer.queries() - first, threads);
}

Matrix window_products(const LayerTensors& layer, Index window, int threads) {
  const Index group = layer.geometry.group(), first = window_begin(layer, window);
  Matrix products(layer.geometry.kv_heads * group * group, layer.context_length);
  std::vector<Buffer<float>> scratch(static_cast<std::size_t>(threads));
  parallel_for(threads, layer.geometry.kv_heads, [&](Index kv_head, std::size_t worker) {
    visit_columns(layer, first, layer.queries() - first, kv_head * group, group, scratch[worker],
                  [&](Index token, const float* weights, Index head_stride) {
                    for (Index a = 0; a < group; ++a) {
                      for (Index b = 0; b < group; ++b) {
                        products((kv_head * group + a) * group + b, token) =
                            dot(weights + a * head_stride, weights + b * head_stride, head_stride);
                      }
                    }
                  });
  });
  return products;
}

void visit_heads(const LayerTensors& layer, Index window, const HeadVisitor& visit, int threads) {
  const LayerGeometry& geometry = layer.geometry;
  const Index first = window_begin(layer, window), queries = layer.queries() - first;
  const Index tokens = layer.query_positions.back() + 1, context = layer.context_length;
  const Index head_stride = (queries + kLanes - 1) / kLanes * kLanes;
  std::vector<Buffer<float>> scratch(static_cast<std::size_t>(threads));
  parallel_for(threads, geometry.query_heads, [&](Index head, std::size_t worker) {
    const QueryRows rows(layer, head, 1, first, queries, head_stride);
    const Index stride = rows.stride();
    float* logits = scratch[worker].at_least(tokens * stride);
    RowSoftmax softmax(layer, rows, head);
    rows.logits(0, tokens, logits);
    for (Index start = 0; start < tokens; start += kTokenBlock) {
      softmax.add(logits + start * stride, std::min(tokens - start, kTokenBlock), stride);
    }
    using Strided = Eigen::Map<const Eigen::MatrixXf, 0, Eigen::OuterStride<>>;
    const Strided block(logits, queries, tokens, Eigen::OuterStride<>(stride));
    HeadAttention attention;
    attention.logits = block.leftCols(context).cast<double>();
    attention.logits = attention.logits.array().isFinite().select(attention.logits, 0.0).eval();
    const Buffer<float> inverse = softmax.inverse_sums(rows);
    for (Index token = 0; token < tokens; ++token) {
      to_weights(logits + token * stride, head_stride, softmax.maximum(), inverse.data());
    }
    attention.weights = block.leftCols(context).cast<double>();
    const auto values = layer.v.matrix<float>(head / geometry.group());
    attention.outputs = (block * values.topRows(tokens)).cast<double>();
    attention.later_weights = Matrix::Zero(queries, layer.tokens - context);
    if (tokens > context)
      attention.later_weights.leftCols(tokens - context) = block.rightCols(tokens - context).cast<double>();
    attention.sink_weights = softmax.sink_weights(queries, head);
    visit(head, attention);
  });
}

}  // namespace laprox::cpu
