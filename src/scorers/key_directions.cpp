#include "scorers/key_directions.h"

#include <algorithm>

namespace laprox {

std::vector<double> dissimilarity(const Matrix& keys, const std::vector<Index>& tokens) {
  Eigen::RowVectorXd anchor = Eigen::RowVectorXd::Zero(keys.cols());
  for (Index i : tokens) anchor += keys.row(i) / std::max(keys.row(i).norm(), 1e-12);
  anchor /= static_cast<double>(tokens.size());
  const double norm = anchor.norm();
  std::vector<double> scores;
  for (Index i : tokens) scores.push_back(-keys.row(i).dot(anchor) / std::max(keys.row(i).norm() * norm, 1e-8));
  return scores;
}

}  // namespace laprox
