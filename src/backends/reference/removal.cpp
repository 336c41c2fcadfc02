#include "backends/reference/removal.h"

#include <algorithm>
#include <limits>

#include "backends/reference/attention.h"

namespace laprox::reference {

namespace {

constexpr double kLargestWeight = 1 - 1e-6;

/// v_i W_O^h of every token: [T, D].
Matrix projected_values(const LayerTensors& layer, Index head) {
  const auto v = layer.v.matrix<double>(head / layer.geometry.group());
  Matrix projected(layer.tokens, layer.geometry.model_size);
  for (Index i = 0; i < layer.tokens; ++i) {
    const std::vector<double> row = project(layer, head, v.row(i).data());
    std::copy(row.begin(), row.end(), &projected(i, 0));
  }
  return projected;
}

/// What the removal of each context entry adds to one head's term of the layer's output at one stored query:
/// visit(i, a / (1 - a) (o - v_i) W_O^h), for every entry that the query sees.
template <class Visit>
void visit_removals(const LayerTensors& layer, Index head, Index row, const Matrix& values, const Visit& visit) {
  const std::vector<bool> all(static_cast<std::size_t>(layer.tokens), true);
  const std::vector<double> weights = attention_row(layer, head, row, all);
  Eigen::RowVectorXd output = Eigen::RowVectorXd::Zero(values.cols());
  for (Index i = 0; i < layer.tokens; ++i) output += weights[i] * values.row(i);
  for (Index i = 0; i < layer.context_length; ++i) {
    const double weight = std::min(weights[i], kLargestWeight);
    if (weight > 0) visit(i, weight / (1 - weight) * (output - values.row(i)));
  }
}

}  // namespace

Matrix removal_energies(const LayerTensors& layer, Index queries, OverQueries over, bool joint) {
  const Index group = layer.geometry.group(), context = layer.context_length;
  Matrix energies = Matrix::Zero(layer.geometry.kv_heads, context);
  for (Index kv_head = 0; kv_head < layer.geometry.kv_heads; ++kv_head) {
    std::vector<Matrix> values;
    for (Index a = 0; a < group; ++a) values.push_back(projected_values(layer, kv_head * group + a));
    for (Index row = layer.queries() - queries; row < layer.queries(); ++row) {
      Matrix moved = Matrix::Zero(context, layer.geometry.model_size);
      Eigen::VectorXd separate = Eigen::VectorXd::Zero(context);
      for (Index a = 0; a < group; ++a) {
        visit_removals(layer, kv_head * group + a, row, values[a], [&](Index i, const Eigen::RowVectorXd& change) {
          moved.row(i) += change;
          separate[i] += change.squaredNorm();
        });
      }
      for (Index i = 0; i < context; ++i) {
        const double energy = joint ? moved.row(i).squaredNorm() : separate[i];
        double& total = energies(kv_head, i);
        total = over == OverQueries::sum ? total + energy : std::max(total, energy);
      }
    }
  }
  return energies;
}

Matrix far_energies(const LayerTensors& layer, Index distance, Index queries) {
  Matrix energies = Matrix::Zero(layer.geometry.kv_heads, layer.context_length);
  for (Index head = 0; head < layer.geometry.query_heads; ++head) {
    const Matrix values = projected_values(layer, head);
    for (Index row = layer.queries() - queries; row < layer.queries(); ++row) {
      const Index t = layer.query_positions[row];
      visit_removals(layer, head, row, values, [&](Index i, const Eigen::RowVectorXd& change) {
        if (t >= i + distance) energies(head / layer.geometry.group(), i) += change.squaredNorm();
      });
    }
  }
  return energies;
}

}  // namespace laprox::reference
