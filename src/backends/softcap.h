#pragma once

#include <algorithm>

namespace laprox {

/// A layer's soft-cap as float32 computes with it and with its inverse, 0 for none. Below the smallest one here all
/// logits are equal, and above the largest they are as without a cap.
inline float softcap_in_float32(double cap) {
  return cap > 0 ? static_cast<float>(std::clamp(cap, 1e-30, 1e30)) : 0.0F;
}

}  // namespace laprox
