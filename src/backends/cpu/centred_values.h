#pragma once

#include "laprox/layer.h"

namespace laprox::cpu {

/// One KV head's values with the mean over the prompt taken away. A difference o - v_i does not change by that, but
/// where all values are nearly the same what is left are their differences and not what they share, which float32
/// products would round away.
class CentredValues {
 public:
  CentredValues(const LayerTensors& layer, Index kv_head)
      : values_(layer.v.matrix<float>(kv_head)),
        mean_(values_.topRows(layer.context_length).cast<double>().colwise().mean()) {}

  Index size() const { return values_.cols(); }
  const Eigen::RowVectorXd& mean() const { return mean_; }
  /// v_i - mean [d_v].
  void row(Index token, float* out) const {
    const float* value = values_.data() + token * size();
    for (Index c = 0; c < size(); ++c) out[c] = static_cast<float>(value[c] - mean_[c]);
  }
  /// The same of the tokens [first, last): [last - first, d_v].
  void rows(Index first, Index last, float* out) const {
    for (Index token = first; token < last; ++token) row(token, out + (token - first) * size());
  }
  /// v_i - mean without the rounding to float32.
  Eigen::RowVectorXd exact(Index token) const { return values_.row(token).cast<double>() - mean_; }

 private:
  MatrixView<float> values_;
  Eigen::RowVectorXd mean_;
};

}  // namespace laprox::cpu
