#include "verify/plain.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "backends/far_queries.h"
#include "backends/sink_weight.h"
#include "base/parallel.h"
#include "laprox/error.h"
#include "verify/plain_arithmetic.h"

namespace laprox::verify {

namespace {

template <class T>
class PlainScoring : public ScoringKernels {
 public:
  using Array = typename Arithmetic<T>::Array;

  PlainScoring(const LayerTensors& layer, const Precision& precision, const Program& program, int threads)
      : precision_(precision), arithmetic_(layer, precision_, program), layer_(layer), threads_(threads) {}

  int threads() const override { return threads_; }

  void visit_heads(Index window, const HeadVisitor& visit) override {
    const Index count = queries(window), first = layer_.queries() - count, context = layer_.context_length;
    parallel_for(threads_, layer_.geometry.query_heads, [&](Index head) {
      Array logits;
      const Array weights = arithmetic_.weights(head, first, count, logits);
      HeadAttention attention{weights.leftCols(context).matrix().template cast<double>(),
                              logits.leftCols(context).matrix().template cast<double>(),
                              arithmetic_.head_output(head, weights).matrix().template cast<double>(),
                              Matrix::Zero(count, layer_.tokens - context), Eigen::ArrayXd::Zero(count)};
      const Index later = weights.cols() - context;
      attention.later_weights.leftCols(later) = weights.rightCols(later).matrix().template cast<double>();
      const auto& sinks = layer_.attention.sinks;
      for (Index row = 0; row < count && !sinks.empty(); ++row) {
        Index at = 0;
        const T largest = weights.row(row).maxCoeff(&at);
        attention.sink_weights[row] = sink_weight(weights.row(row).sum(), largest, logits(row, at), sinks[head]);
      }
      require_finite(attention.weights);
      require_finite(attention.outputs);
      visit(head, attention);
    });
  }

 protected:
  WindowStatistics compute_window_statistics(Index window) override {
    WindowStatistics statistics{per_query_head(), per_query_head()};
    parallel_for(threads_, layer_.geometry.query_heads, [&](Index head) {
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
    });
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
    parallel_for(threads_, norms.rows(), [&](Index kv_head) {
      std::vector<Removal> heads;
      for (Index a = 0; a < group; ++a) {
        heads.push_back(removal_of(kv_head * group + a, layer_.queries() - count, count));
      }
      Array total = Array::Zero(1, layer_.context_length);
      for (Index t = 0; t < count; ++t) {
        Array moved, energy = Array::Zero(1, layer_.context_length);
        for (std::size_t a = 0; a < heads.size(); ++a) {
          const Array change = moved_output(heads[a], t, 0, layer_.context_length);
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
    });
    return squares_of(norms);
  }

  Matrix compute_far_energies(Index distance, Index queries) override {
    const Index count = far_queries(layer_, queries);
    Matrix norms(layer_.geometry.kv_heads, layer_.context_length);
    Array by_head(layer_.geometry.query_heads, layer_.context_length);
    parallel_for(threads_, by_head.rows(),
                 [&](Index head) { by_head.row(head) = far_energies_of(head, distance, count); });
    const Index group = layer_.geometry.group();
    for (Index kv_head = 0; kv_head < norms.rows(); ++kv_head) {
      norms.row(kv_head) = rounded_norms(by_head.middleRows(kv_head * group, group).colwise().sum());
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
  /// Of the removal's query t and the entries [first, first + count): [count, D].
  Array moved_output(const Removal& removal, Index t, Index first, Index count) const {
    Array moved = (-removal.values.middleRows(first, count)).rowwise() + removal.outputs.row(t);
    arithmetic_.round(moved);
    moved.colwise() *= removal.odds.row(t).segment(first, count).transpose();
    arithmetic_.round(moved);
    return moved;
  }
  /// Of one query head, over its last `queries` queries: [1, C]. Blocks of queries and of entries stay in cache.
  Array far_energies_of(Index head, Index distance, Index queries) const {
    constexpr Index kQueries = 64, kEntries = 32;
    Array total = Array::Zero(1, layer_.context_length);
    const Index context = layer_.context_length, unstored = context - layer_.queries();
    for (Index first = std::max(distance, context - queries); first < context; first += kQueries) {
      const Index count = std::min(kQueries, context - first);
      const Removal removal = removal_of(head, first - unstored, count);
      for (Index entry = 0; entry <= first + count - 1 - distance; entry += kEntries) {
        for (Index t = std::max<Index>(0, entry + distance - first); t < count; ++t) {
          const Index entries = std::min(kEntries, first + t - distance + 1 - entry);
          total.middleCols(entry, entries) +=
              moved_output(removal, t, entry, entries).square().rowwise().sum().transpose();
        }
      }
    }
    return total;
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
    parallel_for(threads_, all.rows(), [&](Index head) {
      Array values = statistic(arithmetic_.projected_values(head)).transpose();
      arithmetic_.round(values);
      all.row(head) = values.matrix().template cast<double>();
    });
    require_finite(all);
    return all;
  }

  /// <a_i, b_i> for all pairs of query heads of a group, where rows_of(head) is [C, anything].
  template <class RowsOf>
  Matrix pair_products(const RowsOf& rows_of) const {
    const Index group = layer_.geometry.group();
    Matrix products(layer_.geometry.kv_heads * group * group, layer_.context_length);
    parallel_for(threads_, layer_.geometry.kv_heads, [&](Index kv_head) {
      std::vector<Array> heads;
      for (Index a = 0; a < group; ++a) heads.push_back(rows_of(kv_head * group + a));
      for (Index pair = 0; pair < group * group; ++pair) {
        const auto &a = heads[pair / group], &b = heads[pair % group];
        Array product = (a * b).rowwise().sum().transpose();
        arithmetic_.round(product);
        products.row(kv_head * group * group + pair) = product.matrix().template cast<double>();
      }
    });
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
  int threads_;
};

template <class T>
Matrix output_of(const LayerTensors& layer, const Precision& precision, const Program& program, int threads) {
  using Array = typename Arithmetic<T>::Array;
  const LayerGeometry& g = layer.geometry;
  const Arithmetic<T> arithmetic(layer, precision, program);
  Array heads(layer.queries(), g.query_heads * g.value_size);
  parallel_for(threads, g.query_heads, [&](Index head) {
    arithmetic.visit_weights(head, layer.queries(), [&](Index first, const Array& weights) {
      heads.block(first, head * g.value_size, weights.rows(), g.value_size) = arithmetic.head_output(head, weights);
    });
  });
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
                                                   const Program& program, int threads) {
  if (precision.type() == ElementType::float64)
    return std::make_unique<PlainScoring<double>>(layer, precision, program, threads);
  return std::make_unique<PlainScoring<float>>(layer, precision, program, threads);
}

Matrix plain_output(const LayerTensors& layer, const Precision& precision, const Program& program, int threads) {
  return precision.type() == ElementType::float64 ? output_of<double>(layer, precision, program, threads)
                                                  : output_of<float>(layer, precision, program, threads);
}

}  // namespace laprox::verify
