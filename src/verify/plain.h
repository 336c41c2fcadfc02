#pragma once

#include <memory>

#include "laprox/backend.h"
#include "verify/precision.h"

namespace laprox::verify {

/// The same layer with q, k, v, w_o and the bias rounded to `precision`; the tensors stay float64.
LayerTensors round_layer(const LayerTensors& layer, const Precision& precision);

/// The scoring primitives as a plain eager program in `precision` computes them, to learn how large an error that precision
/// explains. Every operation's result is rounded to it: q k^T, the scaling, the soft-cap's three steps, the softmax, each
/// sum and norm, v W_O. Inside one product, sum or softmax the numbers are float32 (float64 for float64), as in the tensor
/// cores and libraries that such programs run on. `layer` comes from round_layer and must outlive the kernels. Throws
/// BackendError where a result leaves the range of the precision.
std::unique_ptr<ScoringKernels> make_plain_scoring(const LayerTensors& layer, const Precision& precision);

/// The exact output [queries, D] of the layer's queries in the same arithmetic: softmax(q k^T) v rounded, then the heads side
/// by side times W_O rounded, then the bias.
Matrix plain_output(const LayerTensors& layer, const Precision& precision);

}  // namespace laprox::verify
