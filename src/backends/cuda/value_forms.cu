#include <algorithm>

#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/forms.cuh"
#include "backends/cuda/kernels.h"

namespace laprox::cuda {

namespace {

constexpr int kWarps = 12;    ///< per block: what 168 registers per thread allow
constexpr int kTogether = 4;  ///< column tiles that a warp works on at once

/// Row tiles of 16 tokens per warp: as many as registers hold.
template <class T, int Size>
constexpr int kRowTiles = std::clamp((sizeof(T) == 2 ? 8 : 4) / Chunks<T, Size>::kBlocks, 1, 2);

/// Some tokens' values in registers, as both factors of the form. A value is stored times a power of two of its token,
/// which `shrink` takes back, where that keeps it within float16.
template <class T, int Size>
struct TokenValues {
  static constexpr int kRows = kRowTiles<T, Size>;
  uint4 chunks[kRows][2][Chunks<T, Size>::kBlocks];
  float shrink[kRows][2];

  __device__ void load(const T* values, int first, int tokens) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = first + 16 * i + 8 * half + lane_row();
        const uint4* row = reinterpret_cast<const uint4*>(values) + static_cast<size_t>(token) * Chunks<T, Size>::kRow;
#pragma unroll
        for (int b = 0; b < Chunks<T, Size>::kBlocks; ++b) {
          chunks[i][half][b] = token < tokens ? __ldg(row + 4 * b + lane_column()) : make_uint4(0, 0, 0, 0);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) shrink[i][half] = fit(chunks[i][half]);
    }
  }

  /// The pair of values that belongs to column tile `tile`.
  __device__ float2 pair(int i, int half, int tile) const {
    constexpr int kPairs = Forms<T, Size>::kPairs;
    const uint4& chunk = chunks[i][half][tile / kPairs];
    const unsigned words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
    if constexpr (sizeof(T) == 2) {
      return __half22float2(*reinterpret_cast<const __half2*>(&words[tile % kPairs]));
    } else {
      return make_float2(__uint_as_float(words[2 * (tile % kPairs)]), __uint_as_float(words[2 * (tile % kPairs) + 1]));
    }
  }

 private:
  /// bfloat16 to float16: the token's largest value goes to [1, 2). Returns the factor that undoes it.
  __device__ static float fit(uint4 (&row)[Chunks<T, Size>::kBlocks]) {
    if constexpr (!std::is_same_v<T, __nv_bfloat16>) {
      return 1;
    } else {
      __nv_bfloat162 pair_largest{};
#pragma unroll
      for (const uint4& chunk : row) {
        for (unsigned word : {chunk.x, chunk.y, chunk.z, chunk.w}) {
          pair_largest = __hmax2(pair_largest, __habs2(*reinterpret_cast<const __nv_bfloat162*>(&word)));
        }
      }
      // Bit patterns of magnitudes are ordered as the magnitudes.
      const unsigned bits = *reinterpret_cast<const unsigned*>(&pair_largest);
      unsigned largest = max(bits & 0xffffU, bits >> 16);
      largest = max(largest, __shfl_xor_sync(~0U, largest, 1));
      largest = max(largest, __shfl_xor_sync(~0U, largest, 2));
      const unsigned exponent = min(max(largest >> 7, 1U), 253U);
      const float grow = __uint_as_float((254 - exponent) << 23);
#pragma unroll
      for (uint4& chunk : row) {
        for (unsigned* word : {&chunk.x, &chunk.y, &chunk.z, &chunk.w}) {
          const __half2 pair =
              __floats2half2_rn(__uint_as_float(*word << 16) * grow, __uint_as_float(*word & 0xffff0000U) * grow);
          *word = *reinterpret_cast<const unsigned*>(&pair);
        }
      }
      return __uint_as_float(exponent << 23);
    }
  }
};

/// Adds to `sums` a warp's tokens' terms of the column tiles [First, First + kTogether) of one form. `pairs` are the
/// tokens' values that belong to these tiles, as floats.
template <class T, int Size, int First>
__device__ inline void add_tiles(const TokenValues<T, Size>& v, const float2 (&pairs)[kTogether][kRowTiles<T, Size>][2],
                                 const uint4* triangle, const float* diagonal, float (&sums)[kRowTiles<T, Size>][2]) {
  using F = Forms<T, Size>;
  constexpr int kRows = kRowTiles<T, Size>;
  float c[kTogether][kRows][4] = {};
  // Over the elements of v in the outer loop, so that neighbouring sums are independent of each other.
#pragma unroll
  for (int b = 0; b <= (First + kTogether - 1) / F::kPairs; ++b) {
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      const int tile = First + n;
      if (b > tile / F::kPairs) continue;
      const uint4 column = triangle[(F::first_chunk(tile) + b) * 32 + static_cast<int>(threadIdx.x) % 32];
      // Of the block that holds the tile itself, what lies behind the tile is zero.
      const bool half_only = b == tile / F::kPairs && tile % F::kPairs < F::kPairs / 2;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        multiply<FormElement<T>>(c[n][i], v.chunks[i][0][b], v.chunks[i][1][b], column, half_only);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kTogether; ++n) {
    const float2 d = *reinterpret_cast<const float2*>(diagonal + 8 * (First + n) + 2 * lane_column());
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 x = pairs[n][i][half];
        float& sum = sums[i][half];
        sum = __fmaf_rn(__fmaf_rn(d.x, x.x, c[n][i][2 * half]), x.x, sum);
        sum = __fmaf_rn(__fmaf_rn(d.y, x.y, c[n][i][2 * half + 1]), x.y, sum);
      }
    }
  }
}

/// All forms at a warp's tokens, a few column tiles of all forms after the other, so that values become floats once for
/// all forms. The forms' sums wait in `slots`, shared memory of this lane's own at a stride of `slot_stride` per form.
template <class T, int Size, int First = 0>
__device__ inline void evaluate(const TokenValues<T, Size>& v, const uint4* triangles, const float* diagonals,
                                int forms, float* slots, int slot_stride) {
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
    add_tiles<T, Size, First>(v, pairs, triangles + form * F::kChunks * 32, diagonals + form * Size, sums);
#pragma unroll
    for (int i = 0; i < kRows; ++i) slot[2 * i] = sums[i][0], slot[2 * i + 1] = sums[i][1];
  }
  if constexpr (First + kTogether < F::kTiles) {
    evaluate<T, Size, First + kTogether>(v, triangles, diagonals, forms, slots, slot_stride);
  }
}

__device__ inline float sum_over_columns(float x) {
  x += __shfl_xor_sync(~0U, x, 1);
  return x + __shfl_xor_sync(~0U, x, 2);
}

/// Block (share of the tokens, KV head, group of forms) keeps its forms in shared memory and takes its tokens, a tile
/// per warp, from memory to registers once for all of them.
template <class T, int Size>
__global__ void __launch_bounds__(32 * kWarps, 1)
    value_forms_kernel(Layer layer, const uint4* triangles, const float* diagonals, const float* scales,
                       int per_kv_head, int per_block, bool square_root, float* out) {
  using F = Forms<T, Size>;
  constexpr int kRows = kRowTiles<T, Size>, kFormChunks = F::kChunks * 32;
  extern __shared__ uint4 shared[];
  const int kv_head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.z) * per_block;
  const int count = min(per_block, per_kv_head - first), form = kv_head * per_kv_head + first;
  float* diagonal = reinterpret_cast<float*>(shared + per_block * kFormChunks);
  constexpr int kSlotStride = 32 * kWarps * 2 * kRows;
  float* slots = diagonal + per_block * Size + threadIdx.x * 2 * kRows;
  for (int i = static_cast<int>(threadIdx.x); i < count * kFormChunks; i += 32 * kWarps) {
    shared[i] = triangles[static_cast<size_t>(form) * kFormChunks + i];
  }
  for (int i = static_cast<int>(threadIdx.x); i < count * Size; i += 32 * kWarps) {
    diagonal[i] = diagonals[static_cast<size_t>(form) * Size + i];
  }
  __syncthreads();

  const T* values = static_cast<const T*>(layer.v) + static_cast<size_t>(kv_head) * layer.tokens * Size;
  const int warps = static_cast<int>(gridDim.x) * kWarps;
  for (int token = (static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32) * 16 * kRows;
       token < layer.context; token += warps * 16 * kRows) {
    TokenValues<T, Size> v;
    v.load(values, token, layer.context);
    evaluate<T, Size>(v, shared, diagonal, count, slots, kSlotStride);
    for (int f = 0; f < count; ++f) {
      const float scale = scales[form + f];
      float* of_form = out + static_cast<size_t>(form + f) * layer.context;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = token + 16 * i + 8 * half + lane_row();
          const float value = sum_over_columns(slots[f * kSlotStride + 2 * i + half]) * scale;
          if (lane_column() != 0 || at >= layer.context) continue;
          const float shrink = v.shrink[i][half];
          of_form[at] = square_root ? sqrtf(fmaxf(value, 0.0F)) * shrink : value * shrink * shrink;
        }
      }
    }
  }
}

}  // namespace

void value_forms(const Layer& layer, const PackedForms& forms, int per_kv_head, bool square_root, float* out,
                 cudaStream_t stream) {
  for_element_and_size(layer.element, layer.value_stride, [&]<class T, int Size>() {
    const DeviceLimits& limits = device_limits();
    constexpr int kFormBytes = Forms<T, Size>::kBytes + 32 * kWarps * 2 * kRowTiles<T, Size> * 4;  // and its slots
    const int fitting = limits.shared_bytes_per_block / kFormBytes;
    const int per_block = fitting < per_kv_head ? fitting : per_kv_head;
    const int groups = (per_kv_head + per_block - 1) / per_block;
    constexpr int kBlockTokens = kWarps * 16 * kRowTiles<T, Size>;
    const int blocks = (layer.context + kBlockTokens - 1) / kBlockTokens;
    const int resident = limits.multiprocessors / (layer.kv_heads * groups);
    const dim3 grid(resident < 1 ? 1 : resident < blocks ? resident : blocks, layer.kv_heads, groups);
    const int shared_bytes = per_block * kFormBytes;
    allow_shared_memory(value_forms_kernel<T, Size>, shared_bytes);
    value_forms_kernel<T, Size>
        <<<grid, 32 * kWarps, shared_bytes, stream>>>(layer, forms.triangles.data(), forms.diagonals.data(),
                                                      forms.scales.data(), per_kv_head, per_block, square_root, out);
  });
  check_launch("value forms");
}

}  // namespace laprox::cuda
