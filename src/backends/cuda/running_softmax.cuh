#pragma once

#include "backends/cuda/rows.cuh"

namespace laprox::cuda {

/// Below every logit, and finite, so that differences with it are numbers.
inline constexpr float kNothing = -1e30F;
/// A tile's sum that asks for a larger shift: far below overflow, far above what a stale shift usually lets through.
inline constexpr float kTooLarge = 0x1p40F;

/// Sum of exp2(x - shift) with a shift near the largest x so far.
struct RunningSoftmax {
  float shift = kNothing, sum = 0;

  __device__ void join(float other_shift, float other_sum) {
    const float largest = fmaxf(shift, other_shift);
    sum = sum * fast_exp2(shift - largest) + other_sum * fast_exp2(other_shift - largest);
    shift = largest;
  }
};

}  // namespace laprox::cuda
