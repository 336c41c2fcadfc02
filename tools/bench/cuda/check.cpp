#include "check.h"

#include <algorithm>
#include <cmath>

#include "backends/reference/attention.h"

namespace laprox::bench {

namespace {

/// sum over the stored queries of one head of weight^power.
Eigen::VectorXd columns(const LayerTensors& layer, Index head, int power) {
  const std::vector<bool> all(static_cast<std::size_t>(layer.tokens), true);
  Eigen::VectorXd sums = Eigen::VectorXd::Zero(layer.tokens);
  for (Index row = 0; row < layer.queries(); ++row) {
    const std::vector<double> weights = reference::attention_row(layer, head, row, all);
    for (Index i = 0; i < layer.tokens; ++i) {
      const double weight = weights[static_cast<std::size_t>(i)];
      sums(i) += power == 2 ? weight * weight : weight;
    }
  }
  return sums;
}

double pooled(const Eigen::VectorXd& norms, Index token, Index prefix, Index kernel) {
  if (token >= prefix) return norms(token);
  const Index first = std::max<Index>(0, token - kernel / 2), last = std::min(prefix - 1, token + kernel / 2);
  return norms.segment(first, last - first + 1).sum() / static_cast<double>(kernel);
}

}  // namespace

double laprox_error(const LayerTensors& exact, const Matrix& scores, Index window, Index kernel) {
  const Index tokens = exact.tokens, prefix = tokens - window, group = exact.geometry.group();
  std::vector<Index> checked;
  for (Index i = 0; i < prefix; i += 61) checked.push_back(i);
  for (Index i = prefix; i < tokens; ++i) checked.push_back(i);
  const Index count = static_cast<Index>(checked.size());
  Matrix expected = Matrix::Zero(exact.geometry.kv_heads, count);
  Matrix of_head(exact.geometry.query_heads, count);
#pragma omp parallel for
  for (Index head = 0; head < exact.geometry.query_heads; ++head) {
    const Eigen::VectorXd norms = columns(exact, head, 2).cwiseSqrt();
    const auto v = exact.v.matrix<double>(head / group);
    for (Index n = 0; n < count; ++n) {
      const Index token = checked[static_cast<std::size_t>(n)];
      double square = 0;
      for (double x : reference::project(exact, head, v.row(token).data())) square += x * x;
      of_head(head, n) = pooled(norms, token, prefix, kernel) * std::sqrt(square);
    }
  }
  for (Index head = 0; head < of_head.rows(); ++head) {
    expected.row(head / group) += of_head.row(head) / static_cast<double>(group);
  }
  double error = 0;
  for (Index n = 0; n < count; ++n) {
    error = std::max(error, (scores.col(checked[static_cast<std::size_t>(n)]) - expected.col(n)).cwiseAbs().maxCoeff());
  }
  return error / expected.maxCoeff();
}

double column_sum_error(const LayerTensors& exact, const Matrix& sums) {
  double error = 0;
#pragma omp parallel for reduction(max : error)
  for (Index head = 0; head < exact.geometry.query_heads; head += 2) {
    const Eigen::VectorXd expected = columns(exact, head, 1);
    error = std::max(error, (sums.row(head).transpose() - expected).cwiseAbs().maxCoeff() / expected.maxCoeff());
  }
  return error;
}

}  // namespace laprox::bench
