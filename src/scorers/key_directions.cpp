#include "scorers/key_directions.h"

#include <algorithm>

namespace laprox {

Eigen::RowVectorXd summed_directions(const Matrix& keys) {
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(keys.cols());
  for (Index i = 0; i < keys.rows(); ++i) sum += keys.row(i) / std::max(keys.row(i).norm(), 1e-12);
  return sum;
}

Eigen::RowVectorXd dissimilarity_to(const Eigen::RowVectorXd& anchor, const Matrix& keys) {
  const double norm = anchor.norm();
  Eigen::RowVectorXd scores(keys.rows());
  for (Index i = 0; i < keys.rows(); ++i) {
    scores(i) = -keys.row(i).dot(anchor) / std::max(keys.row(i).norm() * norm, 1e-8);
  }
  return scores;
}

Eigen::RowVectorXd dissimilarity(const Matrix& keys) {
  return dissimilarity_to(summed_directions(keys) / static_cast<double>(keys.rows()), keys);
}

}  // namespace laprox
