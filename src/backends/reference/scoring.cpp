#include "backends/reference/scoring.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backends/far_queries.h"
#include "backends/reference/attention.h"
#include "backends/reference/removal.h"
#include "backends/sink_weight.h"
#include "laprox/error.h"

namespace laprox::reference {

Scoring::Scoring(const LayerTensors& layer) : layer_(layer) {}

/// Attention [queries, C] of one query head for the last `queries` stored prompt queries.
Matrix Scoring::attention(Index head, Index queries) const {
  const std::vector<bool> all(static_cast<std::size_t>(layer_.tokens), true);
  Matrix weights(queries, layer_.context_length);
  for (Index t = 0; t < queries; ++t) {
    const std::vector<double> row = attention_row(layer_, head, layer_.queries() - queries + t, all);
    for (Index i = 0; i < layer_.context_length; ++i) weights(t, i) = row[i];
  }
  return weights;
}

Index Scoring::window_queries(Index window) const {
  const Index queries = std::min(window, std::max(layer_.context_length, layer_.queries()));
  require(queries <= layer_.queries(), "the layer was read with the queries that its scorers need");
  return queries;
}

WindowStatistics Scoring::compute_window_statistics(Index window) {
  const Index queries = window_queries(window);
  WindowStatistics statistics;
  statistics.sum = statistics.squares = Matrix::Zero(layer_.geometry.query_heads, layer_.context_length);
  for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
    const Matrix weights = attention(head, queries);
    for (Index t = 0; t < queries; ++t) {
      for (Index i = 0; i < layer_.context_length; ++i) {
        statistics.sum(head, i) += weights(t, i);
        statistics.squares(head, i) += weights(t, i) * weights(t, i);
      }
    }
  }
  return statistics;
}

Matrix Scoring::compute_window_products(Index window) {
  const Index queries = window_queries(window), group = layer_.geometry.group();
  Matrix products = Matrix::Zero(layer_.geometry.kv_heads * group * group, layer_.context_length);
  for (Index kv_head = 0; kv_head < layer_.geometry.kv_heads; ++kv_head) {
    std::vector<Matrix> heads;
    for (Index a = 0; a < group; ++a) heads.push_back(attention(kv_head * group + a, queries));
    for (Index a = 0; a < group; ++a) {
      for (Index b = 0; b < group; ++b) {
        for (Index t = 0; t < queries; ++t) {
          for (Index i = 0; i < layer_.context_length; ++i) {
            products((kv_head * group + a) * group + b, i) += heads[a](t, i) * heads[b](t, i);
          }
        }
      }
    }
  }
  return products;
}

Matrix Scoring::compute_column_sums() {
  require(layer_.queries() == layer_.context_length, "column sums read every prompt query");
  Matrix sums = Matrix::Zero(layer_.geometry.query_heads, layer_.context_length);
  const std::vector<bool> all(static_cast<std::size_t>(layer_.tokens), true);
  for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
    for (Index t = 0; t < layer_.context_length; ++t) {
      const std::vector<double> row = attention_row(layer_, head, t, all);
      for (Index i = 0; i <= t; ++i) sums(head, i) += row[i];
    }
  }
  return sums;
}

void Scoring::visit_heads(Index window, const HeadVisitor& visit) {
  const Index queries = window_queries(window), context = layer_.context_length;
  const std::vector<bool> all(static_cast<std::size_t>(layer_.tokens), true);
  for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
    const auto v = layer_.v.matrix<double>(head / layer_.geometry.group());
    HeadAttention attention{Matrix::Zero(queries, context), Matrix::Zero(queries, context),
                            Matrix::Zero(queries, layer_.geometry.value_size),
                            Matrix::Zero(queries, layer_.tokens - context), Eigen::ArrayXd::Zero(queries)};
    for (Index t = 0; t < queries; ++t) {
      const Index row = layer_.queries() - queries + t;
      const Index position = layer_.query_positions[row];
      const std::vector<double> weights = attention_row(layer_, head, row, all);
      for (Index i = layer_.attention.first_visible(position); i <= position; ++i) {
        const double weight = weights[i];
        attention.outputs.row(t) += weight * v.row(i);
        if (i >= context) {
          attention.later_weights(t, i - context) = weight;
          continue;
        }
        attention.weights(t, i) = weight;
        attention.logits(t, i) = logit(layer_, head, row, i);
      }
      if (layer_.attention.sinks.empty()) continue;
      const auto largest = std::max_element(weights.begin(), weights.end());
      attention.sink_weights[t] =
          sink_weight(std::accumulate(weights.begin(), weights.end(), 0.0), *largest,
                      logit(layer_, head, row, largest - weights.begin()), layer_.attention.sinks[head]);
    }
    visit(head, attention);
  }
}

Matrix Scoring::compute_value_l1_norms() {
  Matrix norms = Matrix::Zero(layer_.geometry.query_heads, layer_.context_length);
  for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
    const auto v = layer_.v.matrix<double>(head / layer_.geometry.group());
    for (Index i = 0; i < layer_.context_length; ++i) {
      for (double x : project(layer_, head, v.row(i).data())) norms(head, i) += std::abs(x);
    }
  }
  return norms;
}

Matrix Scoring::compute_value_norms() {
  Matrix norms(layer_.geometry.query_heads, layer_.context_length);
  for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
    const auto v = layer_.v.matrix<double>(head / layer_.geometry.group());
    for (Index i = 0; i < layer_.context_length; ++i) {
      double square = 0;
      for (double x : project(layer_, head, v.row(i).data())) square += x * x;
      norms(head, i) = std::sqrt(square);
    }
  }
  return norms;
}

Matrix Scoring::compute_value_products() {
  const Index group = layer_.geometry.group();
  Matrix products = Matrix::Zero(layer_.geometry.kv_heads * group * group, layer_.context_length);
  for (Index kv_head = 0; kv_head < layer_.geometry.kv_heads; ++kv_head) {
    const auto v = layer_.v.matrix<double>(kv_head);
    for (Index i = 0; i < layer_.context_length; ++i) {
      std::vector<std::vector<double>> terms;
      for (Index a = 0; a < group; ++a) terms.push_back(project(layer_, kv_head * group + a, v.row(i).data()));
      for (Index a = 0; a < group; ++a) {
        for (Index b = 0; b < group; ++b) {
          double& product = products((kv_head * group + a) * group + b, i);
          for (std::size_t c = 0; c < terms[0].size(); ++c) {
            product += terms[a][c] * terms[b][c];
          }
        }
      }
    }
  }
  return products;
}

Matrix Scoring::compute_removal_energies(Index window, OverQueries over, bool joint) {
  return reference::removal_energies(layer_, window_queries(window), over, joint);
}

Matrix Scoring::compute_far_energies(Index distance, Index queries) {
  return reference::far_energies(layer_, distance, far_queries(layer_, queries));
}

}  // namespace laprox::reference
