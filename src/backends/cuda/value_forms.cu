#include <algorithm>

#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/token_values.cuh"

namespace laprox::cuda {

namespace {

constexpr int kWarps = 12;    ///< per block: what 168 registers per thread allow
constexpr int kTogether = 4;  ///< column tiles that a warp works on at once

/// Row tiles of 16 tokens per warp: as many as registers hold.
template <class T, int Size>
constexpr int kRowTiles = std::clamp((sizeof(T) == 2 ? 8 : 4) / Chunks<T, Size>::kBlocks, 1, 2);

template <class T, int Size>
using Values = TokenValues<T, Size, kRowTiles<T, Size>>;

/// The right factor of one column tile of a square of U.
template <class T, int Size>
__device__ inline uint4 load_column(const uint4* square, int tile_in_block) {
  using F = Forms<T, Size>;
  const int lane = static_cast<int>(threadIdx.x) % 32, step = lane / 16;
  return load_pieces(shared_address(square + step * F::kStepChunks + tile_in_block * 16 + lane % 16));
}

/// Adds to `sums` a warp's tokens' terms of the column tiles [First, First + kTogether) of one form. `pairs` are the
/// tokens' values that belong to these tiles, as floats.
template <class T, int Size, int First>
__device__ inline void add_tiles(const Values<T, Size>& v, const float2 (&pairs)[kTogether][kRowTiles<T, Size>][2],
                                 const uint4* triangle, float (&sums)[kRowTiles<T, Size>][2]) {
  using F = Forms<T, Size>;
  constexpr int kRows = kRowTiles<T, Size>;
  float c[kTogether][kRows][4] = {};
  // Over the elements of v in the outer loops, so that neighbouring sums are independent of each other.
#pragma unroll
  for (int part = 0; part < F::kParts; ++part) {
#pragma unroll
    for (int b = 0; b <= (First + kTogether - 1) / F::kPairs; ++b) {
#pragma unroll
      for (int n = 0; n < kTogether; ++n) {
        const int column_block = (First + n) / F::kPairs, tile = (First + n) % F::kPairs;
        if (b > column_block) continue;
        const uint4 column = load_column<T, Size>(triangle + part * F::kPartChunks + F::square(column_block, b), tile);
        // Of the square on the diagonal, what lies behind the tile is zero.
        const bool half_only = b == column_block && tile < F::kPairs / 2;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          multiply<FormElement<T>>(c[n][i], v.chunks[i][0][b], v.chunks[i][1][b], column, half_only);
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kTogether; ++n) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 x = pairs[n][i][half];
        sums[i][half] = __fmaf_rn(c[n][i][2 * half], x.x, sums[i][half]);
        sums[i][half] = __fmaf_rn(c[n][i][2 * half + 1], x.y, sums[i][half]);
      }
    }
  }
}

/// All forms at a warp's tokens, a few column tiles of all forms after the other, so that values become floats once for
/// all forms. The forms' sums wait in `slots`, shared memory of this lane's own at a stride of `slot_stride` per form.
template <class T, int Size, int First = 0>
__device__ inline void evaluate(const Values<T, Size>& v, const uint4* triangles, int forms, float* slots,
                                int slot_stride) {
  using F = Forms<T, Size>;
  constexpr int kRows = kRowTiles<T, Size>;
  float2 pairs[kTogether][kRows][2];
#pragma unroll
  for (int n = 0; n < kTogether; ++n) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      pairs[n][i][0] = v.pair(i, 0, First + n);
      pairs[n][i][1] = v.pair(i, 1, First + n);
    }
  }
#pragma unroll 1
  for (int form = 0; form < forms; ++form) {
    float sums[kRows][2] = {};
    float* slot = slots + form * slot_stride;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (First > 0) sums[i][0] = slot[2 * i], sums[i][1] = slot[2 * i + 1];
    }
    add_tiles<T, Size, First>(v, pairs, triangles + form * F::kChunks, sums);
#pragma unroll
    for (int i = 0; i < kRows; ++i) slot[2 * i] = sums[i][0], slot[2 * i + 1] = sums[i][1];
  }
  if constexpr (First + kTogether < F::kTiles) {
    evaluate<T, Size, First + kTogether>(v, triangles, forms, slots, slot_stride);
  }
}

/// Block (FormsShare, KV head) keeps its forms in shared memory and takes its tokens, a tile per warp, from memory to
/// registers once for all of them.
template <class T, int Size>
__global__ void __launch_bounds__(32 * kWarps, 1)
    value_forms_kernel(Layer layer, const uint4* triangles, const float* scales, int per_kv_head, int groups,
                       bool square_root, float* out) {
  using F = Forms<T, Size>;
  const FormsShare own(per_kv_head, groups);
  constexpr int kRows = kRowTiles<T, Size>;
  extern __shared__ uint4 shared[];
  const int kv_head = static_cast<int>(blockIdx.y), count = own.count, form = kv_head * per_kv_head + own.first;
  constexpr int kSlotStride = 32 * kWarps * 2 * kRows;
  float* slots = reinterpret_cast<float*>(shared + count * F::kChunks) + threadIdx.x * 2 * kRows;
  for (int i = static_cast<int>(threadIdx.x); i < count * F::kChunks; i += 32 * kWarps) {
    shared[i] = triangles[static_cast<size_t>(form) * F::kChunks + i];
  }
  __syncthreads();

  const uint4* values = static_cast<const uint4*>(layer.v) + static_cast<size_t>(kv_head) * layer.tokens * F::kRow;
  const int warps = own.shares * kWarps;
  for (int token = (own.share * kWarps + static_cast<int>(threadIdx.x) / 32) * 16 * kRows; token < layer.context;
       token += warps * 16 * kRows) {
    Values<T, Size> v;
    float shrink[kRows][2];
    v.load(values + static_cast<size_t>(token) * F::kRow, layer.context - token);
    v.fit(shrink);
    evaluate<T, Size>(v, shared, count, slots, kSlotStride);
    for (int f = 0; f < count; ++f) {
      const float scale = scales[form + f];
      float* of_form = out + static_cast<size_t>(form + f) * layer.context + token;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float* slot = slots + f * kSlotStride + 2 * i;
        const float shares[2] = {slot[0], slot[1]};
        store_forms(shares, scale, shrink[i], square_root, layer.context - token - 16 * i, of_form + 16 * i);
      }
    }
  }
}

void value_forms_sm80(const Layer& layer, const PackedForms& forms, int per_kv_head, bool square_root, float* out,
                      cudaStream_t stream) {
  for_element_and_size(layer.element, layer.value_stride, [&]<class T, int Size>() {
    constexpr int kFormBytes = Forms<T, Size>::kBytes + 32 * kWarps * 2 * kRowTiles<T, Size> * 4;  // and its slots
    const FormsLaunch launch(layer, per_kv_head, kFormBytes, 0, kWarps * 16 * kRowTiles<T, Size>);
    allow_shared_memory(value_forms_kernel<T, Size>, launch.shared_bytes);
    value_forms_kernel<T, Size><<<launch.grid, 32 * kWarps, launch.shared_bytes, stream>>>(
        layer, forms.triangles.data(), forms.scales.data(), per_kv_head, launch.groups, square_root, out);
  });
  check_launch("value forms");
}

}  // namespace

FormsLaunch::FormsLaunch(const Layer& layer, int per_kv_head, int form_bytes, int other_bytes, int block_tokens) {
  const int at_once = fitting_in_shared_memory(form_bytes, per_kv_head, other_bytes);
  groups = (per_kv_head + at_once - 1) / at_once;
  shared_bytes = (per_kv_head + groups - 1) / groups * form_bytes + other_bytes;
  const int most = groups * ((layer.context + block_tokens - 1) / block_tokens);
  grid = dim3(std::clamp(device_limits().multiprocessors / layer.kv_heads, groups, most), layer.kv_heads);
}

void value_forms(const Layer& layer, const PackedForms& forms, int per_kv_head, bool square_root, float* out,
                 cudaStream_t stream) {
  (use_sm90(layer) ? value_forms_sm90 : value_forms_sm80)(layer, forms, per_kv_head, square_root, out, stream);
}

}  // namespace laprox::cuda
