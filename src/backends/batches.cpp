#include "backends/batches.h"

namespace laprox {

namespace {

double evicted_sum(const Matrix& terms, const LayerKeep& keep, std::size_t budget) {
  double sum = 0;
  for (std::size_t head = 0; head < keep.rankings.size(); ++head) {
    const Ranking& ranking = keep.rankings[head];
    for (auto token = ranking.begin() + keep.counts[budget][head]; token != ranking.end(); ++token) {
      sum += terms(static_cast<Index>(head), *token);
    }
  }
  return sum;
}

}  // namespace

std::vector<Index> set_kept_sums(const Matrix& exact, std::span<const double> products, OutputError& error) {
  std::vector<Index> cancelled;
  for (std::size_t t = 0; t < products.size(); ++t) {
    const double norm = exact.row(static_cast<Index>(t)).squaredNorm();
    error.kept_square.push_back(norm + 2 * products[t] + error.query_error[t]);
    error.kept_product.push_back(norm + products[t]);
    if (error.query_error[t] > 0 && error.kept_square[t] < norm / 4) cancelled.push_back(static_cast<Index>(t));
  }
  return cancelled;
}

void set_bounds(const Matrix& terms, Index group, std::span<const LayerKeep> policies, LayerErrors& result) {
  Matrix entries = Matrix::Zero(terms.rows() / group, terms.cols());
  for (Index head = 0; head < terms.rows(); ++head) entries.row(head / group) += terms.row(head);
  for (std::size_t p = 0; p < policies.size(); ++p) {
    for (std::size_t b = 0; b < result.errors[p].size(); ++b) {
      result.errors[p][b].bound = evicted_sum(entries, policies[p], b);
    }
  }
}

}  // namespace laprox
