#pragma once

#include <array>
#include <memory>

#include "laprox/backend.h"
#include "verify/precision.h"

namespace laprox::verify {

/// Correct programs differ in the order of their operations, and with it in which elements are unlucky. Some such
/// programs together tell more of how large an error the precision explains than any one of them.
struct Program {
  bool scale_first;  ///< (scale q) k^T instead of scale (q k^T)
  bool alternating;  ///< the products of every second key add up from the last component to the first, as the tails and
                     ///< blocks of a vectorised loop have other orders: equal tokens are told apart
};
inline constexpr std::array<Program, 3> kPrograms{{{false, false}, {true, false}, {true, true}}};

/// The same layer with q, k, v, w_o and the bias rounded to `precision`; the tensors stay float64.
LayerTensors round_layer(const LayerTensors& layer, const Precision& precision);

/// The scoring primitives as a plain eager program in `precision` computes them, to learn how large an error that
/// precision explains. Every operation's result is rounded to it: q k^T, the scaling, the soft-cap's three steps, the
/// softmax, each sum and norm, v W_O. Inside one product, sum or softmax the numbers are float32 (float64 for float64),
/// as in the tensor cores and libraries that such programs run on. `layer` comes from round_layer and must outlive the
/// kernels. Numbers do not depend on `threads`. Throws BackendError where a result leaves the range of the precision.
std::unique_ptr<ScoringKernels> make_plain_scoring(const LayerTensors& layer, const Precision& precision,
                                                   const Program& program, int threads);

/// The exact output [queries, D] of the layer's queries in the same arithmetic: softmax(q k^T) v rounded, then the
/// heads side by side times W_O rounded, then the bias.
Matrix plain_output(const LayerTensors& layer, const Precision& precision, const Program& program, int threads);

}  // namespace laprox::verify
