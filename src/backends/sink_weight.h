#pragma once

#include <cmath>

namespace laprox {

/// The weight of a head's learned sink in one query's softmax, from those of the keys: their `total`, and the `largest`
/// one with its `logit`. The rest of a total near 1 has no digits; a largest weight may have vanished beside a sink.
inline double sink_weight(double total, double largest, double logit, double sink) {
  return total < 0.5 ? 1 - total : largest * std::exp(sink - logit);
}

}  // namespace laprox
