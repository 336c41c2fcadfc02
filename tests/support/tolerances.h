#pragma once

namespace laprox::testing {

/// How far the float32 backend may be from the float64 reference. u = 2^-24 = 6e-8 is the rounding of one operation.
///
/// A logit of d products has a relative error of about sqrt(d) u of the sum of their sizes: for |logit| < 30 and d <=
/// 128 some 30 * 11 u = 2e-5 at the worst, 2e-6 as a rule. That is the relative error of a weight exp(logit), and so of
/// everything that is a sum of weights times values without cancellation: scores, column sums, retained mass.
inline constexpr double kScore = 2e-5;
/// Norms of differences w (o_kept - o_evicted) are formed without subtracting nearly equal outputs, so they keep the
/// relative error of weights; the two outputs inside differ by their own size, which costs a small factor.
inline constexpr double kError = 5e-5;
/// What counts as zero next to quantities of size 1.
inline constexpr double kNothing = 1e-12;

}  // namespace laprox::testing
