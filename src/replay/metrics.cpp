#include "laprox/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "laprox/error.h"

namespace laprox {

namespace {

/// ||error|| / ||norm|| from squares; an error of 0 is 0 whatever it is relative to.
double relative(double error_square, double norm_square) {
  if (error_square == 0) return 0;
  return norm_square > 0 ? std::sqrt(error_square / norm_square) : std::numeric_limits<double>::infinity();
}

/// Cosine between exact and kept output; 1 where they are the same, 0 where one of them is 0 alone.
double cosine(double norm_square, double kept_square, double product, double error_square) {
  if (error_square == 0) return 1;
  if (norm_square <= 0 || kept_square <= 0) return 0;
  return std::clamp(product / std::sqrt(norm_square) / std::sqrt(kept_square), -1.0, 1.0);
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

double quantile(std::vector<double> values, double q) {
  require(!values.empty() && q >= 0 && q <= 1, "a quantile of something");
  std::sort(values.begin(), values.end());
  const double rank = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(rank);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  if (values[below] == values[above]) return values[below];  // also where both are infinite
  return values[below] + (rank - static_cast<double>(below)) * (values[above] - values[below]);
}

PooledError& PooledError::operator+=(const PooledError& other) {
  error_square += other.error_square;
  norm_square += other.norm_square;
  return *this;
}

double PooledError::relative_error() const { return relative(error_square, norm_square); }

ExactNorms norms_of(const ExactOutput& exact) {
  ExactNorms norms{{}, exact.head_norm};
  for (Index t = 0; t < exact.output.rows(); ++t) norms.query.push_back(exact.output.row(t).squaredNorm());
  return norms;
}

LayerMetrics layer_metrics(const ExactNorms& exact, const OutputError& error, SoftmaxMode mode,
                           std::span<const double> residual_norms, Index segments) {
  require(residual_norms.empty() || residual_norms.size() == error.query_error.size(), "one norm per judged query");
  LayerMetrics metrics;
  std::vector<double> query_errors, cosines, residual_squares;
  for (std::size_t t = 0; t < error.query_error.size(); ++t) {
    const double norm_square = exact.query[t];
    query_errors.push_back(relative(error.query_error[t], norm_square));
    cosines.push_back(cosine(norm_square, error.kept_square[t], error.kept_product[t], error.query_error[t]));
    if (!residual_norms.empty()) {
      residual_squares.push_back(error.query_error[t] / (residual_norms[t] * residual_norms[t]));
    }
    metrics.pooled += {error.query_error[t], norm_square};
  }
  const auto queries = static_cast<Index>(error.query_error.size());
  for (Index s = 0; s < segments; ++s) {
    PooledError& segment = metrics.segments.emplace_back();
    for (Index t = segment_begin(s, segments, queries); t < segment_begin(s + 1, segments, queries); ++t) {
      segment += {error.query_error[t], exact.query[t]};
    }
  }
  metrics.relative_error = metrics.pooled.relative_error();
  metrics.query_error_mean = mean(query_errors);
  metrics.query_error_p95 = quantile(query_errors, 0.95);
  metrics.query_error_p99 = quantile(query_errors, 0.99);
  metrics.query_error_max = quantile(query_errors, 1);
  if (!residual_squares.empty()) metrics.residual_error = std::sqrt(mean(residual_squares));
  metrics.cosine_mean = mean(cosines);
  metrics.cosine_min = quantile(cosines, 0);
  metrics.retained_mass = error.retained_mass;
  for (std::size_t head = 0; head < error.head_error.size(); ++head) {
    metrics.head_relative_error.push_back(relative(error.head_error[head], exact.head[head]));
  }
  if (mode == SoftmaxMode::truncated) {
    metrics.bound = relative(error.bound * error.bound, metrics.pooled.norm_square);
    metrics.bound_ratio = metrics.pooled.error_square > 0 ? error.bound / std::sqrt(metrics.pooled.error_square) : 1;
  }
  return metrics;
}

ModelMetrics model_metrics(const std::vector<LayerMetrics>& layers) {
  ModelMetrics model;
  PooledError pooled;
  double residual_square = 0;
  std::vector<PooledError> segments(layers.empty() ? 0 : layers[0].segments.size());
  for (const LayerMetrics& layer : layers) {
    for (std::size_t s = 0; s < segments.size(); ++s) segments[s] += layer.segments[s];
    pooled += layer.pooled;
    model.mean_error += layer.relative_error / static_cast<double>(layers.size());
    model.retained_mass += layer.retained_mass / static_cast<double>(layers.size());
    residual_square += layer.residual_error * layer.residual_error / static_cast<double>(layers.size());
    model.cosine_mean += layer.cosine_mean / static_cast<double>(layers.size());
  }
  model.relative_error = pooled.relative_error();
  model.residual_error = std::sqrt(residual_square);  // NaN where a layer has none
  for (const PooledError& segment : segments) model.segments.push_back(segment.relative_error());
  return model;
}

}  // namespace laprox
