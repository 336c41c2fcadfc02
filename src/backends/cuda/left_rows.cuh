#pragma once

#include "backends/cuda/rows.cuh"
#include "backends/cuda/tensor_core.cuh"

namespace laprox::cuda {

// Query rows of half types as left factors: a warp has 16 rows, half of a row block, so that a lane (g, t) has the rows
// g and g + 8 and sums over what they are multiplied with stay in its registers.

inline constexpr int kRowBlockRows = 32;

/// Which rows of its row block a warp has.
__device__ inline int first_warp_row() { return static_cast<int>(threadIdx.x) / 32 % 2 * 16; }

/// A warp's 16 rows as left factor.
template <class T, int Size>
struct LeftRows {
  static constexpr int kSteps = Size / 16;
  unsigned steps[kSteps][4];

  /// Rows [0, count) of `rows`; the others become 0.
  __device__ void load(const T* rows, int count) {
    const unsigned* words = reinterpret_cast<const unsigned*>(rows);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 8 * half + lane_row();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const unsigned* from = words + row * Size / 2 + 8 * s + lane_column();
        steps[s][half] = row < count ? __ldg(from) : 0;
        steps[s][half + 2] = row < count ? __ldg(from + 4) : 0;
      }
    }
  }
  /// A warp's half of a row block's queries, of which there are `count`.
  __device__ void load_queries(const T* queries, int count) {
    load(queries + first_warp_row() * Size, count - first_warp_row());
  }
};

/// The products as what logits are made from: capped, and hidden where a query does not see one of the 64 keys.
__device__ inline void finish_products(float (&c)[8][4], const Layer& layer, const RowBlock& rows, int first_key,
                                       const LogitForm& form) {
  form.apply_cap(c);
  if (rows.sees_all(layer, first_key, first_key + 64)) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int position = rows.position(layer, first_warp_row() + 8 * half + lane_row());
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (!sees(layer, position, first_key + 8 * j + 2 * lane_column() + e)) c[j][2 * half + e] = form.hidden();
      }
    }
  }
}

}  // namespace laprox::cuda
