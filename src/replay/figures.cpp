#include "laprox/figures.h"

#include <algorithm>

#include "laprox/error.h"

namespace laprox {

namespace {

using L = LayerMetrics;
using M = ModelMetrics;

constexpr const char* kRegret =
    "(error - the oracle's) / (random's - the oracle's): 0 as good as the oracle, 1 as random";

}  // namespace

const std::vector<Figure>& figures() {
  static const std::vector<Figure> all{
      {"relative_error", &L::relative_error, &M::relative_error,
       "||O_kept - O||_F / ||O||_F of the layer output over the judged queries",
       "sqrt(sum over layers of squared errors / squared norms)",
       "Relative error of the layer outputs, pooled over layers"},
      {"retained_mass", &L::retained_mass, &M::retained_mass, "mean of 1 - the exact attention weight on evicted keys",
       "mean over layers of retained_mass", "Attention mass on kept keys, mean over layers", true},
      {"cosine_mean", &L::cosine_mean, &M::cosine_mean, "mean over queries of the cosine between kept and exact output",
       "mean over layers of cosine_mean", "Cosine between kept and exact output, mean over queries and layers", true},
      {"cosine_min", &L::cosine_min, nullptr, "smallest cosine of any query", nullptr},
      {"query_error_mean", &L::query_error_mean, nullptr, "mean over queries of ||o_kept - o|| / ||o||", nullptr},
      {"query_error_p95", &L::query_error_p95, nullptr, "95th percentile over queries of ||o_kept - o|| / ||o||",
       nullptr},
      {"query_error_p99", &L::query_error_p99, nullptr, "99th percentile over queries of ||o_kept - o|| / ||o||",
       nullptr},
      {"query_error_max", &L::query_error_max, nullptr, "largest ||o_kept - o|| / ||o|| of any query", nullptr},
      {"bound", &L::bound, nullptr, "sum of evicted ||A[:, i]|| ||v_i W_O|| over ||O||_F; bounds relative_error",
       nullptr, nullptr, false, true},
      {"bound_ratio", &L::bound_ratio, nullptr, "bound / relative_error", nullptr, nullptr, true, true},
      {"mean_error", nullptr, &M::mean_error, nullptr, "mean over layers of relative_error",
       "Relative error of the layer outputs, mean over layers"},
      {"residual_error", &L::residual_error, &M::residual_error,
       "sqrt(mean over queries of ||o_kept - o||^2 / r^2), r: norm of the residual stream that the output is added to",
       "sqrt(mean over layers and queries of ||o_kept - o||^2 / r^2), r: norm of the residual stream",
       "Error of the layer outputs over the norm of the residual stream, pooled over layers and queries"},
      {"regret", nullptr, nullptr, kRegret, kRegret, "Regret: (error - the oracle's) / (random's - the oracle's)"},
  };
  return all;
}

const Figure& figure(const std::string& name) {
  const auto found =
      std::find_if(figures().begin(), figures().end(), [&](const Figure& each) { return each.name == name; });
  require(found != figures().end(), "a figure of the list");
  return *found;
}

}  // namespace laprox
