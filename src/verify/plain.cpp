#include "verify/plain.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "laprox/error.h"

namespace laprox::verify {

namespace {

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
    const Index position = layer_.query_positions[static_cast<std::size_t>(row)];
    const Index first = layer_.attention.first_visible(position), count = position + 1 - first;
    const auto& sinks = layer_.attention.sinks;
    const bool has_sink = !sinks.empty();
    const T sink = has_sink ? static_cast<T>(sinks[static_cast<std::size_t>(head)]) : T{0};
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

template <class T>
class PlainScoring : public ScoringKernels {
 public:
  using Array = typename Arithmetic<T>::Array;

  PlainScoring(const LayerTensors& layer, const Precision& precision, const Program& program)
      : precision_(precision), arithmetic_(layer, precision_, program), layer_(layer) {}

  int threads() const override { return 1; }

  void visit_heads(Index window, const HeadVisitor& visit) override {
    const Index count = queries(window), first = layer_.queries() - count, context = layer_.context_length;
    for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
      Array logits;
      const Array weights = arithmetic_.weights(head, first, count, logits);
      const HeadAttention attention{weights.leftCols(context).matrix().template cast<double>(),
                                    logits.leftCols(context).matrix().template cast<double>(),
                                    arithmetic_.head_output(head, weights).matrix().template cast<double>()};
      require_finite(attention.weights);
      require_finite(attention.outputs);
      visit(head, attention);
    }
  }

 protected:
  WindowStatistics compute_window_statistics(Index window) override {
    WindowStatistics statistics{per_query_head(), per_query_head()};
    for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
      Array sum = Array::Zero(1, layer_.context_length), squares = sum;
      arithmetic_.visit_weights(head, queries(window), [&](Index, const Array& all) {
        const auto weights = all.leftCols(layer_.context_length);
        sum += weights.colwise().sum();
        squares += weights.square().colwise().sum();
      });
      // A program asks for the norm, so it is the norm that is rounded.
      Array norm = squares.sqrt();
      arithmetic_.round(sum);
      arithmetic_.round(norm);
      statistics.sum.row(head) = sum.matrix().template cast<double>();
      statistics.squares.row(head) = norm.template cast<double>().square().matrix();
    }
    require_finite(statistics.sum);
    require_finite(statistics.squares);
    return statistics;
  }

  Matrix compute_window_products(Index window) override {
    return pair_products([&](Index head) {
      Array logits;
      const Array weights = arithmetic_.weights(head, layer_.queries() - queries(window), queries(window), logits);
      return Array(weights.leftCols(layer_.context_length).transpose());
    });
  }

  Matrix compute_column_sums() override { return window_statistics(layer_.context_length).sum; }

  Matrix compute_value_norms() override {
    return value_statistic([](const Array& product) { return product.square().rowwise().sum().sqrt(); });
  }
  Matrix compute_value_l1_norms() override {
    return value_statistic([](const Array& product) { return product.abs().rowwise().sum(); });
  }
  Matrix compute_value_products() override {
    return pair_products([&](Index head) { return arithmetic_.projected_values(head); });
  }

  Matrix compute_removal_energies(Index window, OverQueries over, bool joint) override {
    const Index group = layer_.geometry.group(), count = queries(window);
    Matrix norms = Matrix::Zero(layer_.geometry.kv_heads, layer_.context_length);
    for (Index kv_head = 0; kv_head < norms.rows(); ++kv_head) {
      std::vector<Removal> heads;
      for (Index a = 0; a < group; ++a) {
        heads.push_back(removal_of(kv_head * group + a, layer_.queries() - count, count));
      }
      Array total = Array::Zero(1, layer_.context_length);
      for (Index t = 0; t < count; ++t) {
        Array moved, energy = Array::Zero(1, layer_.context_length);
        for (std::size_t a = 0; a < heads.size(); ++a) {
          const Array change = moved_output(heads[a], t);
          if (joint) {
            moved = a == 0 ? change : Array(moved + change);
            arithmetic_.round(moved);
          } else {
            energy += change.square().rowwise().sum().transpose();
          }
        }
        if (joint) energy = moved.square().rowwise().sum().transpose();
        total = over == OverQueries::sum ? Array(total + energy) : Array(total.max(energy));
      }
      norms.row(kv_head) = rounded_norms(total);
    }
    return squares_of(norms);
  }

  Matrix compute_far_energies(Index distance) override {
    constexpr Index kBlock = 64;
    const Index group = layer_.geometry.group();
    Matrix norms(layer_.geometry.kv_heads, layer_.context_length);
    for (Index kv_head = 0; kv_head < norms.rows(); ++kv_head) {
      Array total = Array::Zero(1, layer_.context_length);
      for (Index a = 0; a < group; ++a) {
        for (Index first = distance; first < layer_.queries(); first += kBlock) {
          const Index count = std::min(kBlock, layer_.queries() - first);
          const Removal removal = removal_of(kv_head * group + a, first, count);
          for (Index t = 0; t < count; ++t) {
            const Index keys = first + t - distance + 1;
            total.leftCols(keys) += moved_output(removal, t).topRows(keys).square().rowwise().sum().transpose();
          }
        }
      }
      norms.row(kv_head) = rounded_norms(total);
    }
    return squares_of(norms);
  }

 private:
  /// What one query head's output moves by when an entry is removed is odds (output - value), after W_O.
  struct Removal {
    Array odds;     ///< [queries, C]
    Array outputs;  ///< [queries, D]
    Array values;   ///< [C, D]
  };
  Removal removal_of(Index head, Index first, Index count) const {
    Array logits, weights = arithmetic_.weights(head, first, count, logits);
    const Array outputs = arithmetic_.projected_output(head, arithmetic_.head_output(head, weights));
    Array odds = weights.leftCols(layer_.context_length);
    arithmetic_.to_odds(odds);
    return {std::move(odds), outputs, arithmetic_.projected_values(head)};
  }
  /// Of the removal's query t: [C, D].
  Array moved_output(const Removal& removal, Index t) const {
    Array moved = removal.outputs.row(t).replicate(removal.values.rows(), 1) - removal.values;
    arithmetic_.round(moved);
    moved.colwise() *= removal.odds.row(t).transpose();
    arithmetic_.round(moved);
    return moved;
  }
  /// A program asks for the norm, so it is the norm that is rounded.
  Eigen::RowVectorXd rounded_norms(const Array& squares) const {
    Array norms = squares.sqrt();
    arithmetic_.round(norms);
    return norms.matrix().template cast<double>();
  }
  Matrix squares_of(const Matrix& norms) const {
    require_finite(norms);
    return norms.cwiseAbs2();
  }

  Index queries(Index window) const { return std::min(window, layer_.queries()); }
  Matrix per_query_head() const { return Matrix::Zero(layer_.geometry.query_heads, layer_.context_length); }

  template <class Statistic>
  Matrix value_statistic(const Statistic& statistic) const {
    Matrix all = per_query_head();
    for (Index head = 0; head < all.rows(); ++head) {
      Array values = statistic(arithmetic_.projected_values(head)).transpose();
      arithmetic_.round(values);
      all.row(head) = values.matrix().template cast<double>();
    }
    require_finite(all);
    return all;
  }

  /// <a_i, b_i> for all pairs of query heads of a group, where rows_of(head) is [C, anything].
  template <class RowsOf>
  Matrix pair_products(const RowsOf& rows_of) const {
    const Index group = layer_.geometry.group();
    Matrix products(layer_.geometry.kv_heads * group * group, layer_.context_length);
    for (Index kv_head = 0; kv_head < layer_.geometry.kv_heads; ++kv_head) {
      std::vector<Array> heads;
      for (Index a = 0; a < group; ++a) heads.push_back(rows_of(kv_head * group + a));
      for (Index pair = 0; pair < group * group; ++pair) {
        const auto &a = heads[static_cast<std::size_t>(pair / group)],
                   &b = heads[static_cast<std::size_t>(pair % group)];
        Array product = (a * b).rowwise().sum().transpose();
        arithmetic_.round(product);
        products.row(kv_head * group * group + pair) = product.matrix().template cast<double>();
      }
    }
    require_finite(products);
    return products;
  }

  void require_finite(const Matrix& values) const {
    if (values.allFinite()) return;
    throw BackendError(fmt::format("a plain evaluation in {} leaves the range of its numbers in layer {}",
                                   to_string(precision_.type()), layer_.layer));
  }

  Precision precision_;
  Arithmetic<T> arithmetic_;
  const LayerTensors& layer_;
};

template <class T>
Matrix output_of(const LayerTensors& layer, const Precision& precision, const Program& program) {
  using Array = typename Arithmetic<T>::Array;
  const LayerGeometry& g = layer.geometry;
  const Arithmetic<T> arithmetic(layer, precision, program);
  Array heads(layer.queries(), g.query_heads * g.value_size);
  for (Index head = 0; head < g.query_heads; ++head) {
    arithmetic.visit_weights(head, layer.queries(), [&](Index first, const Array& weights) {
      heads.block(first, head * g.value_size, weights.rows(), g.value_size) = arithmetic.head_output(head, weights);
    });
  }
  const typename Arithmetic<T>::Dense w_o = layer.w_o.matrix<double>().template cast<T>();
  Array output = (heads.matrix() * w_o).array();
  precision.round(output);
  for (std::size_t c = 0; c < layer.bias.size(); ++c)
    output.col(static_cast<Index>(c)) += static_cast<T>(layer.bias[c]);
  if (!layer.bias.empty()) precision.round(output);
  return output.matrix().template cast<double>();
}

Tensor rounded(const Tensor& tensor, const Precision& precision) {
  Tensor copy(tensor.type(), tensor.shape());
  std::copy_n(tensor.data<double>(), tensor.size(), copy.data<double>());
  precision.round(copy.data<double>(), copy.size());
  return copy;
}

}  // namespace

LayerTensors round_layer(const LayerTensors& layer, const Precision& precision) {
  LayerTensors copy;
  copy.layer = layer.layer;
  copy.geometry = layer.geometry;
  copy.attention = layer.attention;
  copy.context_length = layer.context_length;
  copy.tokens = layer.tokens;
  copy.query_positions = layer.query_positions;
  copy.residual_norms = layer.residual_norms;
  copy.q = rounded(layer.q, precision);
  copy.k = rounded(layer.k, precision);
  copy.v = rounded(layer.v, precision);
  copy.w_o = rounded(layer.w_o, precision);
  copy.bias = layer.bias;
  precision.round(copy.bias.data(), static_cast<Index>(copy.bias.size()));
  return copy;
}

std::unique_ptr<ScoringKernels> make_plain_scoring(const LayerTensors& layer, const Precision& precision,
                                                   const Program& program) {
  if (precision.type() == ElementType::float64)
    return std::make_unique<PlainScoring<double>>(layer, precision, program);
  return std::make_unique<PlainScoring<float>>(layer, precision, program);
}

Matrix plain_output(const LayerTensors& layer, const Precision& precision, const Program& program) {
  return precision.type() == ElementType::float64 ? output_of<double>(layer, precision, program)
                                                  : output_of<float>(layer, precision, program);
}

}  // namespace laprox::verify
