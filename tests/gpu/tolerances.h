#pragma once

#include "support/tolerances.h"

namespace laprox::testing {

/// Value norms and products in half types. The folded Gram matrix is rounded to float16 but for its diagonal: 2^-12 per
/// element, whose errors are as often up as down. Where all of them conspire a form is off by 2^-12 = 2.4e-4, its root
/// by half of that; cancellation between elements, which small sizes have, costs a small factor.
inline constexpr double kHalfForm = 5e-4;

}  // namespace laprox::testing
