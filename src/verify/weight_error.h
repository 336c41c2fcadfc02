#pragma once

#include "laprox/layer.h"
#include "verify/precision.h"

namespace laprox::verify {

/// The relative error of an attention weight whose logit and whose row's largest logit are each off by one unit in the
/// last place, at the largest magnitude that a stored query's largest logit has. Logits are sums of float32 numbers, or
/// of float64 ones where the precision is float64. At ordinary logits it is below 1e-5; at logits of 2.5e5 it is 0.03,
/// and no order of summation is better than another: a few plain programs do not tell how bad an order can be.
double weight_error(const LayerTensors& layer, const Precision& precision, int threads);

}  // namespace laprox::verify
