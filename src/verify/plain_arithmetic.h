#pragma once

#include <cmath>
#include <limits>

#include "verify/plain.h"

namespace laprox::verify {

/// One layer's plain arithmetic with T inside each operation.
template <class T>
class Arithmetic {
 public:
  using Array = Eigen::Array<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Dense = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  Arithmetic(const LayerTensors& layer, const Precision& precision, const Program& program)
      : layer_(layer), precision_(precision), program_(program) {}

  const LayerTensors& layer() const { return layer_; }
  void round(Array& values) const { precision_.round(values); }

  /// scale <q, k>, soft-capped, of the stored queries [first, first + count).
  Array logits(Index head, Index first, Index count) const {
    const Array k = layer_.k.matrix<double>(head / layer_.geometry.group()).topRows(keys()).template cast<T>().array();
    const T scale = static_cast<T>(layer_.attention.scale), cap = static_cast<T>(layer_.attention.softcap);
    Array q = layer_.q.matrix<double>(head).middleRows(first, count).template cast<T>().array();
    if (program_.scale_first) {
      q *= scale;
      round(q);
    }
    Array logits = product(q, k);
    round(logits);
    if (!program_.scale_first) {
      logits *= scale;
      round(logits);
    }
    if (cap <= 0) return logits;
    logits /= cap;
    round(logits);
    logits = logits.unaryExpr([](T x) { return std::tanh(x); });
    round(logits);
    logits *= cap;
    round(logits);
    return logits;
  }

  /// Their causal softmax, and the logits that it was taken of. Invisible keys have 0 in both.
  Array weights(Index head, Index first, Index count, Array& logits) const {
    logits = this->logits(head, first, count);
    Array weights = Array::Zero(count, logits.cols());
    for (Index row = 0; row < count; ++row) softmax_row(head, first + row, logits.row(row), weights.row(row));
    round(weights);
    return weights;
  }

  /// Calls visit(first row, weights) for blocks of the last `queries` stored queries.
  template <class Visit>
  void visit_weights(Index head, Index queries, const Visit& visit) const {
    constexpr Index kBlock = 64;
    Array logits;
    for (Index first = layer_.queries() - queries; first < layer_.queries(); first += kBlock) {
      const Index count = std::min(kBlock, layer_.queries() - first);
      visit(first, weights(head, first, count, logits));
    }
  }

  /// o = weights v of one query head: [rows of weights, d_v].
  Array head_output(Index head, const Array& weights) const {
    const Dense v = layer_.v.matrix<double>(head / layer_.geometry.group()).topRows(weights.cols()).template cast<T>();
    Array output = (weights.matrix() * v).array();
    round(output);
    return output;
  }

  /// o W_O^h of one query head: [rows of output, D].
  Array projected_output(Index head, const Array& output) const {
    const Index size = layer_.geometry.value_size;
    const Dense w = layer_.w_o.matrix<double>().middleRows(head * size, size).template cast<T>();
    Array product = (output.matrix() * w).array();
    round(product);
    return product;
  }

  /// a / (1 - a) of weights, a being at most 1 - 1e-6.
  void to_odds(Array& weights) const {
    weights = weights.min(static_cast<T>(1 - 1e-6));
    round(weights);
    Array rest = 1 - weights;
    round(rest);
    // What has rounded to 1 keeps the largest odds.
    weights = (weights / rest).min(static_cast<T>(1e6));
    round(weights);
  }

  /// v W_O^h of one query head over the context: [C, D].
  Array projected_values(Index head) const {
    const LayerGeometry& g = layer_.geometry;
    const Dense v = layer_.v.matrix<double>(head / g.group()).topRows(layer_.context_length).template cast<T>();
    const Dense w = layer_.w_o.matrix<double>().middleRows(head * g.value_size, g.value_size).template cast<T>();
    Array product = (v * w).array();
    round(product);
    return product;
  }

 private:
  /// q k^T, component by component: the order of a simple loop, in which one large component costs the most digits.
  Array product(const Array& q, const Array& k) const {
    const Dense components = k.matrix().transpose();
    const auto sum = [&](bool reversed) {
      Dense sums = Dense::Zero(q.rows(), k.rows());
      for (Index n = 0; n < q.cols(); ++n) {
        const Index c = reversed ? q.cols() - 1 - n : n;
        sums.noalias() += q.col(c).matrix() * components.row(c);
      }
      return sums;
    };
    Dense sums = sum(false);
    if (program_.alternating) {
      const Dense reversed = sum(true);
      for (Index key = 1; key < k.rows(); key += 2) sums.col(key) = reversed.col(key);
    }
    return sums.array();
  }

  /// The context and whatever else the queries see: judging queries see decoded tokens too.
  Index keys() const { return std::max(layer_.context_length, layer_.query_positions.back() + 1); }

  template <class In, class Out>
  void softmax_row(Index head, Index row, In logits, Out weights) const {
    const Index position = layer_.query_positions[row];
    const Index first = layer_.attention.first_visible(position), count = position + 1 - first;
    const auto& sinks = layer_.attention.sinks;
    const bool has_sink = !sinks.empty();
    const T sink = has_sink ? static_cast<T>(sinks[head]) : T{0};
    const auto visible = logits.segment(first, count);
    const T largest = has_sink ? std::max(sink, visible.maxCoeff()) : visible.maxCoeff();
    if (!std::isfinite(largest) || visible.hasNaN()) {
      weights.segment(first, count).setConstant(std::numeric_limits<T>::quiet_NaN());
      return;
    }
    weights.segment(first, count) = (visible - largest).exp();
    const T total = weights.sum() + (has_sink ? std::exp(sink - largest) : T{0});
    weights.segment(first, count) /= total;
    logits.head(first).setZero();
    logits.tail(logits.size() - position - 1).setZero();
  }

  const LayerTensors& layer_;
  const Precision& precision_;
  Program program_;
};

}  // namespace laprox::verify
