#pragma once

#include <limits>
#include <span>
#include <vector>

#include "laprox/backend.h"

namespace laprox {

/// Where the queries that judge a policy come from.
enum class JudgedQueries {
  decoded,  ///< stored queries at positions >= context_length: held out from every scorer
  window    ///< the last prompt queries, which window scorers have seen: in-sample
};

/// The sums that a relative error over several queries is made of.
struct PooledError {
  double error_square = 0, norm_square = 0;
  PooledError& operator+=(const PooledError& other);
  double relative_error() const;
};

/// The first of n judging queries that belongs to a segment: segments are equal stretches of them, as far as n divides.
inline Index segment_begin(Index segment, Index segments, Index n) { return (segment * n + segments - 1) / segments; }

/// How far one kept set moves one layer's output. All errors are relative.
struct LayerMetrics {
  double relative_error = 0;  ///< ||O_kept - O||_F / ||O||_F over the judged queries
  double query_error_mean = 0, query_error_p95 = 0, query_error_p99 = 0,
         query_error_max = 0;              ///< of the per-query errors
  double cosine_mean = 0, cosine_min = 0;  ///< between a query's kept and exact output
  /// sqrt(mean over queries of ||error_t||^2 / r_t^2), r_t being the norm of the residual stream that the output was
  /// added to; NaN where the dump does not store it.
  double residual_error = std::numeric_limits<double>::quiet_NaN();
  double retained_mass = 0;
  double bound = 0;                         ///< truncated mode: the paper's bound on ||O_kept - O||_F, over ||O||_F
  double bound_ratio = 0;                   ///< truncated mode: the bound over the actual error, >= 1
  std::vector<double> head_relative_error;  ///< [query_heads] before W_o
  PooledError pooled;                       ///< what the model's pooled error is made of
  std::vector<PooledError> segments = {};   ///< of equal stretches of the judging queries; sums of 0 where one has none
};

/// What errors of a layer's queries are relative to.
struct ExactNorms {
  std::vector<double> query;  ///< [n] ||o_t||^2, bias included
  std::vector<double> head;   ///< [query_heads] squared norm of the head outputs, before W_o
};
ExactNorms norms_of(const ExactOutput& exact);

/// Forms the metrics of one kept set. Relative figures of an all-zero exact output are 0 where the error is 0, else
/// infinite. `residual_norms`: of the judged queries, or empty. `segments`: stretches of them that are pooled each.
LayerMetrics layer_metrics(const ExactNorms& exact, const OutputError& error, SoftmaxMode mode,
                           std::span<const double> residual_norms = {}, Index segments = 0);

/// Over the layers of a model.
struct ModelMetrics {
  double relative_error = 0;  ///< sqrt(sum of squared errors / sum of squared norms)
  double mean_error = 0;      ///< mean over layers of relative_error
  /// sqrt(mean over layers and queries of ||error_t||^2 / r_t^2); NaN where a layer has no residual norms.
  double residual_error = std::numeric_limits<double>::quiet_NaN();
  double retained_mass = 0;  ///< means over layers
  double cosine_mean = 0;
  std::vector<double> segments = {};  ///< relative error of each stretch of the judging queries; 0 where it has none
};
ModelMetrics model_metrics(const std::vector<LayerMetrics>& layers);

/// The q-th quantile, 0 <= q <= 1, with linear interpolation between the order statistics. `values` must not be empty.
double quantile(std::vector<double> values, double q);

}  // namespace laprox
