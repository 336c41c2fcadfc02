#pragma once

#include <cfloat>

#include "backends/cuda/kernels.h"

namespace laprox::cuda {

// Query rows of one KV head are taken in ROW BLOCKS of kResident queries of one query head, what one warp holds: row
// block rb has the queries [first + rb / group * kResident, ...) of the group's head rb % group. So neighbouring warps
// have the same queries of different heads, and see the same keys.

inline constexpr float kLog2E = 1.4426950408889634F;

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
  /// Whether every query of the block sees all keys in [begin, end).
  __device__ bool sees_all(const Layer& layer, int begin, int end) const {
    return end - 1 <= first_position && begin >= first_visible(layer, last_position);
  }
  __device__ static int first_visible(const Layer& layer, int position) {
    return layer.sliding_window > 0 ? max(0, position - layer.sliding_window + 1) : 0;
  }
};

__device__ inline bool sees(const Layer& layer, int position, int key) {
  return key <= position && key >= RowBlock::first_visible(layer, position);
}

/// Turns an inner product into the logit times log2(e), so that exp2 makes weights of it.
struct LogitForm {
  float factor, cap;

  __device__ explicit LogitForm(const Layer& layer)
      : factor(layer.softcap > 0 ? layer.scale / layer.softcap : layer.scale * kLog2E), cap(layer.softcap * kLog2E) {}
  __device__ float operator()(float product) const {
    const float z = product * factor;
    return cap > 0 ? cap * tanhf(z) : z;
  }
};

}  // namespace laprox::cuda
