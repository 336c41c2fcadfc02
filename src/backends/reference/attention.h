#pragma once

#include <vector>

#include "laprox/layer.h"

namespace laprox::reference {

/// The logit of query head `head`'s stored query `row` against the key of `token`: scaled and soft-capped, not masked.
double logit(const LayerTensors& layer, Index head, Index row, Index token);

/// The attention weights [keys] of one stored query over the keys that `visible` admits, among keys 0 .. its position
/// within the sliding window; 0 elsewhere. The learned sink joins the denominator. All zero where no key is admitted.
std::vector<double> attention_row(const LayerTensors& layer, Index head, Index row, const std::vector<bool>& visible);

/// v_i W_O^h for one head vector [d_v] -> [D].
std::vector<double> project(const LayerTensors& layer, Index head, const double* head_vector);

}  // namespace laprox::reference
