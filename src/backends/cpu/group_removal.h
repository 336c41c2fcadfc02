#pragma once

#include <map>
#include <utility>
#include <vector>

#include "backends/cpu/quadratic_form.h"
#include "backends/cpu/window_attention.h"
#include "laprox/backend.h"

namespace laprox::cpu {

/// ||sum_h x_h W_O^h||^2 of a group's vectors x [G * d_v] in float64, or sum_h ||x_h W_O^h||^2 where the heads are not
/// joint.
class GroupNorm {
 public:
  /// `grams` [a * G + b] hold W^a (W^b)^T; those with a != b are only read where `joint`.
  GroupNorm(const LayerTensors& layer, Index kv_head, const std::vector<FloatMatrix>& grams, bool joint);
  /// [rows of x]
  Eigen::VectorXd squares(const Matrix& x) const;

 private:
  double direct_square(const Eigen::RowVectorXd& x) const;

  const LayerTensors& layer_;
  Index kv_head_, group_, size_;
  bool joint_;
  Matrix gram_;  ///< [G * d_v, G * d_v]
};

/// The energies of removal over the entries of one KV head.
///
/// With c = a / (1 - a) and M_ab = W^a (W^b)^T, ||sum_a c_a (o_a - v) W^a||^2 is
/// sum_ab c_a c_b (v M_ab v - v M_ab o_b - o_a M_ab v + o_a M_ab o_b): forms at the values, which no query enters, and
/// products of the values with one vector per query and pair of heads. Where that cancels too much for float32, because
/// v is near o or the heads' terms are near to each other's opposites, the sum is formed again in float64 from the
/// differences o - v themselves.
class GroupRemoval {
 public:
  GroupRemoval(const LayerTensors& layer, Index kv_head, Index first_query, Index queries, OverQueries over, bool joint,
               int threads);

  /// Writes the energies of the tokens [first, last), at most kTokens.
  void energies(Index first, Index last, double* out) const;
  static constexpr Index kTokens = 120;

 private:
  struct Pair {
    Index a, b;  ///< a <= b
  };
  struct Open {
    Index token, query;
  };
  void form_pairs(const LayerTensors& layer, Index kv_head, bool joint, int threads);
  void form_moments(const std::vector<FloatMatrix>& grams);
  void find_known();
  void expand(const float* odds, const double* forms, Index forms_stride, const float* linear, float* energies,
              float* bounds) const;
  double reduce(Index token, double scale, const float* energies, const float* bounds, std::vector<Open>& open) const;
  void write_moved(Index token, Index query, const float* odds, Matrix& moved, Index row) const;
  Eigen::VectorXd exact(const std::vector<Open>& open) const;

  Index group_, kv_head_;
  OverQueries over_;
  bool joint_;
  CentredValues values_;
  WindowAttention attention_;
  std::vector<Pair> pairs_;
  std::vector<QuadraticForm> forms_;                 ///< by pair
  Panels moments_;                                   ///< [d_v, pairs * head_stride] -(1 or 2) (M_ab o_b + M_ba o_a)
  Buffer<float> squares_;                            ///< [pairs, head_stride] (1 or 2) o_a M_ab o_b
  Buffer<float> roots_;                              ///< [G, head_stride] sqrt(o_a M_aa o_a)
  std::vector<GroupNorm> norm_;                      ///< one
  std::vector<const Dominant*> dominants_;           ///< by row; null where there is none
  std::map<std::pair<Index, Index>, double> known_;  ///< (token, query): energies with a dominant entry
};

}  // namespace laprox::cpu
