#pragma once

#include <vector>

#include "laprox/tensor.h"

namespace laprox {

/// How AdaKV's official form splits a layer's tokens over its heads (arXiv 2407.11550).
struct AdaSplit {
  double floor = 0.2;  ///< share that is split evenly
  bool exact =
      true;  ///< largest remainders, so that the counts add up; else each is rounded half to even, as published
  bool normalize = false;  ///< scores times (sum of the head's best `share`) / (sum of all) while heads compete

  /// The evenly split part of some tokens, cut to whole ones as published.
  Index part(Index tokens) const { return static_cast<Index>(static_cast<double>(tokens) * floor); }
};

/// Head g gets won_g * (1 - floor) + guaranteed, won_g of its scores being among the layer's `total` best. `lists`:
/// each head's scores, descending. `share`: total per head. `guaranteed`: int(share * floor), unless published code
/// differs.
std::vector<Index> split_over_heads(const std::vector<std::vector<double>>& lists, Index total, Index guaranteed,
                                    const AdaSplit& how);

}  // namespace laprox
