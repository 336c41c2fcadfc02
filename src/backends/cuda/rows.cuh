#pragma once

#include "backends/cuda/kernels.h"

namespace laprox::cuda {

// Query rows of one KV head are taken in ROW BLOCKS of kResident queries of one query head, what one warp holds: row
// block rb has the queries [first + rb / group * kResident, ...) of the group's head rb % group. So neighbouring warps
// have the same queries of different heads, and see the same keys.

inline constexpr float kLog2E = 1.4426950408889634F;

/// 2^x within 2 units in the last place; results below the normal range are 0.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The first key that a query at `position` sees.
__device__ inline int first_visible(const Layer& layer, int position) {
  return layer.sliding_window > 0 ? max(0, position - layer.sliding_window + 1) : 0;
}
__device__ inline bool sees(const Layer& layer, int position, int key) {
  return key <= position && key >= first_visible(layer, position);
}

/// What one row block is.
struct RowBlock {
  int head;                 ///< of the layer
  int first, last;          ///< stored queries
  int first_key, last_key;  ///< the keys that one of its queries sees: [first_key, last_key)
  int first_position, last_position;

  __device__ RowBlock(const Layer& layer, QueryRange range, int kv_head, int row_block, int resident) {
    head = kv_head * layer.group + row_block % layer.group;
    first = range.first + row_block / layer.group * resident;
    last = min(first + resident, range.first + range.count);
    first_position = layer.positions[first];
    last_position = layer.positions[last - 1];
    first_key = first_visible(layer, first_position);
    last_key = last_position + 1;
  }
  __device__ int count() const { return last - first; }
  /// The position of its query `row`, or of its last one for rows of padding.
  __device__ int position(const Layer& layer, int row) const { return layer.positions[min(first + row, last - 1)]; }
  /// Whether every query of the block sees all keys in [begin, end).
  __device__ bool sees_all(const Layer& layer, int begin, int end) const {
    return end - 1 <= first_position && begin >= first_visible(layer, last_position);
  }
};

/// Logits times log2(e), so that exp2 makes weights of them. The usual case is one factor, which joins the subtraction
/// of the maximum in one instruction; a soft cap is applied first, to a whole tile of products.
struct LogitForm {
  float factor, inner, cap;

  __device__ explicit LogitForm(const Layer& layer)
      : factor(layer.softcap > 0 ? 1 : layer.scale * kLog2E),
        inner(layer.softcap > 0 ? layer.scale / layer.softcap : 0),
        cap(layer.softcap * kLog2E) {}
  /// What is a product of an unseen key: its logit is -infinity.
  __device__ float hidden() const { return factor < 0 ? INFINITY : -INFINITY; }
  template <int Columns>
  __device__ void apply_cap(float (&c)[Columns][4]) const {
    if (cap == 0) return;
#pragma unroll
    for (auto& tile : c) {
#pragma unroll
      for (float& x : tile) x = cap * tanhf(x * inner);
    }
  }
};

/// Hides products c of the keys first_key + g and first_key + g + 8 with the rows 8 n + .. of a block where a query
/// does not see the key.
template <int Columns>
__device__ inline void hide_unseen(float (&c)[Columns][4], const Layer& layer, const RowBlock& rows, int first_key,
                                   const LogitForm& form) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < Columns; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int position = rows.position(layer, 8 * n + 2 * (lane % 4) + e % 2);
      if (!sees(layer, position, first_key + 8 * (e / 2) + lane / 4)) c[n][e] = form.hidden();
    }
  }
}

}  // namespace laprox::cuda
