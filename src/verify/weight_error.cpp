#include "verify/weight_error.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.h"

namespace laprox::verify {

namespace {

/// Of one query head: the largest magnitude of a row's largest logit.
double largest_logit(const LayerTensors& layer, Index head) {
  constexpr Index kBlock = 64;
  const AttentionForm& form = layer.attention;
  const auto q = layer.q.matrix<double>(head), k = layer.k.matrix<double>(head / layer.geometry.group());
  double largest = 0;
  for (Index first = 0; first < layer.queries(); first += kBlock) {
    const Index count = std::min(kBlock, layer.queries() - first);
    const Matrix products = q.middleRows(first, count) * k.transpose();
    for (Index row = 0; row < count; ++row) {
      const Index position = layer.query_positions[first + row], begin = form.first_visible(position);
      const double logit = form.scale * products.row(row).segment(begin, position + 1 - begin).maxCoeff();
      largest = std::max(largest, std::abs(form.softcap > 0 ? form.softcap * std::tanh(logit / form.softcap) : logit));
    }
  }
  return largest;
}

}  // namespace

double weight_error(const LayerTensors& layer, const Precision& precision, int threads) {
  const Precision sums(precision.type() == ElementType::float64 ? ElementType::float64 : ElementType::float32);
  std::vector<double> by_head(static_cast<std::size_t>(layer.geometry.query_heads), 0);
  parallel_for(threads, layer.geometry.query_heads, [&](Index head) { by_head[head] = largest_logit(layer, head); });
  return 2 * sums.ulp(*std::max_element(by_head.begin(), by_head.end()));
}

}  // namespace laprox::verify
