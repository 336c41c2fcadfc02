#include "backends/cpu/window_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/parallel.h"

namespace laprox::cpu {

namespace {

/// Tokens of one task, whose float32 sums join those of the others in float64. Fixed, so that results do not depend on
/// the number of threads.
constexpr Index kChunk = 1024;
constexpr Index kTokenBlock = 128;
/// Exponentials that are added up on their own before they join the others.
constexpr Index kRun = 16;
constexpr float kHidden = -std::numeric_limits<float>::infinity();

Index chunks_of(Index tokens) { return (tokens + kChunk - 1) / kChunk; }

IntLanes load_integers(const std::int32_t* from) {
  IntLanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

/// The largest logit of each row among the tokens [first, last), and the first token that has it.
void find_maxima(const float* logits, Index first, Index last, Index stride, float* maximum, std::int32_t* top) {
  for (Index r = 0; r < stride; r += kLanes) {
    Lanes largest = broadcast(kHidden);
    IntLanes at{};
    for (Index token = first; token < last; ++token) {
      const Lanes logit = load(logits + token * stride + r);
      const IntLanes larger = logit > largest;
      largest = select(larger, logit, largest);
      at = (larger & static_cast<std::int32_t>(token)) | (~larger & at);
    }
    store(maximum + r, largest);
    std::memcpy(top + r, &at, sizeof at);
  }
}

}  // namespace

/// Every row's largest logit over all tokens, and where it is.
struct WindowAttention::Largest {
  Buffer<float> maximum;
  Buffer<std::int32_t> top;
};

/// Sums over all tokens but the row's top one, by chunk: of exp(logit - maximum), and of the centred values weighted
/// with it.
struct WindowAttention::Rest {
  Index value_stride;
  Buffer<float> sums;    ///< [chunks, stride]
  Buffer<float> values;  ///< [chunks, stride, value_stride]
};

WindowAttention::WindowAttention(const LayerTensors& layer, Index kv_head, Index first_query, Index queries,
                                 const CentredValues& values, int threads)
    : rows_(layer, kv_head * layer.geometry.group(), layer.geometry.group(), first_query, queries,
            (queries + kLanes - 1) / kLanes * kLanes),
      tokens_(layer.query_positions[first_query + queries - 1] + 1),
      context_(layer.context_length),
      exponentials_(std::max(tokens_, context_) * rows_.stride()),
      totals_(rows_.stride()),
      outputs_(Matrix::Zero(rows_.heads() * rows_.head_stride(), values.size())) {
  const Largest largest = find_largest(threads);
  const Rest rest = sum_rest(largest, values, threads);
  std::fill_n(totals_.data(), stride(), std::numeric_limits<float>::infinity());
  std::fill(exponentials_.data() + tokens_ * stride(), exponentials_.data() + exponentials_.size(), 0.0F);
  const auto& sinks = layer.attention.sinks;
  for (Index row = 0; row < outputs_.rows(); ++row) {
    if (row % head_stride() >= queries) continue;
    double sum = 0;
    Eigen::RowVectorXd of_values = Eigen::RowVectorXd::Zero(values.size());
    for (Index chunk = 0; chunk < chunks_of(tokens_); ++chunk) {
      sum += rest.sums[chunk * stride() + row];
      const float* part = &rest.values[(chunk * stride() + row) * rest.value_stride];
      for (Index c = 0; c < values.size(); ++c) of_values[c] += part[c];
    }
    const Index head = kv_head * layer.geometry.group() + row / head_stride();
    const double sink = sinks.empty() ? kHidden : sinks[head];
    finish_row(row, sink, largest.top[row], largest.maximum[row], sum, of_values, values);
  }
}

WindowAttention::Largest WindowAttention::find_largest(int threads) {
  const Index stride = this->stride(), chunks = chunks_of(tokens_);
  Buffer<float> maxima(chunks * stride);
  Buffer<std::int32_t> tops(chunks * stride);
  parallel_for(threads, chunks, [&](Index chunk) {
    const Index begin = chunk * kChunk, end = std::min(tokens_, begin + kChunk);
    for (Index first = begin; first < end; first += kTokenBlock) {
      rows_.logits(first, std::min(end, first + kTokenBlock), exponentials_.data() + first * stride);
    }
    find_maxima(exponentials_.data(), begin, end, stride, &maxima[chunk * stride], &tops[chunk * stride]);
  });
  for (Index chunk = 1; chunk < chunks; ++chunk) {
    for (Index row = 0; row < stride; ++row) {
      if (maxima[chunk * stride + row] <= maxima[row]) continue;
      maxima[row] = maxima[chunk * stride + row];
      tops[row] = tops[chunk * stride + row];
    }
  }
  return {std::move(maxima), std::move(tops)};
}

WindowAttention::Rest WindowAttention::sum_rest(const Largest& largest, const CentredValues& values, int threads) {
  const Index stride = this->stride(), chunks = chunks_of(tokens_), real_rows = rows_.heads() * head_stride();
  Rest rest{padded(values.size()), Buffer<float>(chunks * stride),
            Buffer<float>(chunks * stride * padded(values.size()))};
  parallel_for(threads, chunks, [&](Index chunk) {
    const Index begin = chunk * kChunk, end = std::min(tokens_, begin + kChunk);
    float* sums = &rest.sums[chunk * stride];
    std::fill_n(sums, stride, 0.0F);
    Panels block(kTokenBlock, values.size());
    Buffer<float> centred(values.size());
    for (Index first = begin; first < end; first += kTokenBlock) {
      const Index last = std::min(end, first + kTokenBlock);
      float* e = exponentials_.data() + first * stride;
      for (Index token = first; token < last; ++token) {
        for (Index r = 0; r < stride; r += kLanes) {
          float* at = e + (token - first) * stride + r;
          const IntLanes is_top = load_integers(&largest.top[r]) == static_cast<std::int32_t>(token) - IntLanes{};
          store(at, select(is_top, Lanes{}, exp_nonpositive(load(at) - load(&largest.maximum[r]))));
        }
        values.row(token, centred.data());
        block.set_row(token - first, centred.data());
      }
      for (Index r = 0; r < stride; r += kLanes) {
        Lanes total{};
        for (Index start = 0; start < last - first; start += kRun) {
          Lanes run{};
          const Index stop = std::min(last - first, start + kRun);
          for (Index i = start; i < stop; ++i) run += load(e + i * stride + r);
          total += run;
        }
        store(sums + r, load(sums + r) + total);
      }
      multiply(real_rows, last - first, {e, 1, stride}, block, 0, block.count(),
               &rest.values[chunk * stride * rest.value_stride], rest.value_stride, first > begin);
    }
  });
  return rest;
}

/// With e = exp(logit - maximum), 1 for the top token: total = 1 + sum of the others' e + the sink's. All are divided
/// by the sink's where that is larger than 1, because it may be too large for any number.
void WindowAttention::finish_row(Index row, double sink, Index top, double maximum, double rest,
                                 const Eigen::RowVectorXd& rest_values, const CentredValues& values) {
  const double shift = std::max(0.0, sink - maximum);
  const double scale = std::exp(-shift), of_sink = std::exp(sink - maximum - shift);
  const double others = rest * scale + of_sink, total = scale + others;
  const Eigen::RowVectorXd top_value = values.exact(top);
  totals_[row] = static_cast<float>(total / scale);
  outputs_.row(row) = (scale * (top_value + rest_values) - of_sink * values.mean()) / total;
  if (top >= context_) return;
  if (others >= scale) {
    exponentials_[top * stride() + row] = 1.0F;
    return;
  }
  const double away = std::max(others / total, 1 - kLargestWeight);
  const Eigen::RowVectorXd difference =
      scale * rest_values - rest * scale * top_value - of_sink * (top_value + values.mean());
  dominants_.push_back({row, top, (1 - away) / away / total * difference});
}

}  // namespace laprox::cpu
