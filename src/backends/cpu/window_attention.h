#pragma once

#include <vector>

#include "backends/cpu/centred_values.h"
#include "backends/cpu/logits.h"

namespace laprox::cpu {

/// The share of a query's weight that one entry is taken to have at most, when it is removed.
inline constexpr double kLargestWeight = 1 - 1e-6;

/// The entry that has more than half of a query's weight. There 1 - a and o - v_i are small differences of numbers that
/// float32 rounds, so both come from sums over the other entries.
struct Dominant {
  Index row;                 ///< of the window's rows
  Index token;               ///< i
  Eigen::RowVectorXd moved;  ///< [d_v] a / (1 - a) * (o - v_i)
};

/// What the group of one KV head makes of the context at some queries: rows as in QueryRows.
class WindowAttention {
 public:
  /// Of the stored queries [first_query, first_query + queries).
  WindowAttention(const LayerTensors& layer, Index kv_head, Index first_query, Index queries,
                  const CentredValues& values, int threads);

  Index head_stride() const { return rows_.head_stride(); }
  Index queries() const { return rows_.queries(); }
  Index stride() const { return rows_.stride(); }

  /// Writes a / (1 - a) [stride()] of one context token, 0 where it dominates a row and in padding rows.
  void odds(Index token, float* out) const {
    const float* e = exponentials_.data() + token * stride();
    for (Index r = 0; r < stride(); r += kLanes) {
      const Lanes weight = load(e + r);
      store(out + r, weight / (load(&totals_[r]) - weight));
    }
  }
  /// o - mean [rows, d_v], where mean is that of the centred values.
  const Matrix& outputs() const { return outputs_; }
  const std::vector<Dominant>& dominants() const { return dominants_; }

 private:
  struct Largest;
  struct Rest;
  Largest find_largest(int threads);
  Rest sum_rest(const Largest& largest, const CentredValues& values, int threads);
  void finish_row(Index row, double sink, Index top, double maximum, double rest, const Eigen::RowVectorXd& rest_values,
                  const CentredValues& values);

  QueryRows rows_;
  Index tokens_, context_;
  Buffer<float> exponentials_;  ///< [tokens, stride] exp(logit - maximum), 0 of a dominant token
  Buffer<float> totals_;        ///< [stride] what they add up to, with the sink; infinite in padding rows
  Matrix outputs_;
  std::vector<Dominant> dominants_;
};

}  // namespace laprox::cpu
