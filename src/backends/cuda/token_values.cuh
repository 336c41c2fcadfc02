#pragma once

#include "backends/cuda/forms.cuh"

namespace laprox::cuda {

/// Values of kRows tiles of 16 tokens in a warp's registers, as both factors of a form.
template <class T, int Size, int kRows>
struct TokenValues {
  uint4 chunks[kRows][2][Chunks<T, Size>::kBlocks];

  /// The first `count` of the tokens whose values lie at `rows`, in device or in shared memory; the others become 0.
  __device__ void load(const uint4* rows, int count) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * i + 8 * half + lane_row();
#pragma unroll
        for (int b = 0; b < Chunks<T, Size>::kBlocks; ++b) {
          chunks[i][half][b] =
              row < count ? rows[row * Chunks<T, Size>::kRow + 4 * b + lane_column()] : make_uint4(0, 0, 0, 0);
        }
      }
    }
  }

  /// bfloat16 to float16: each token's largest value goes to [1, 2). `shrink` is the power of two that undoes it.
  __device__ void fit(float (&shrink)[kRows][2]) {
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

/// Within 2^-23 of its value.
__device__ inline float fast_sqrt(float x) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}

/// Stores the forms at the tokens of the rows g and g + 8 of a tile of 16 from their lanes' shares of the sums:
/// of_form[row] for row < count. All lanes of the warp must call it.
__device__ inline void store_forms(const float (&shares)[2], float scale, const float (&shrink)[2], bool square_root,
                                   int count, float* of_form) {
  // Lanes 0 and 1 go on with the first token, lanes 2 and 3 with the second one.
  const int half = lane_column() / 2, row = 8 * half + lane_row();
  float sum = (half ? shares[1] : shares[0]) + __shfl_xor_sync(~0U, half ? shares[0] : shares[1], 2);
  sum += __shfl_xor_sync(~0U, sum, 1);
  const float value = sum * scale;
  const float grown = half ? shrink[1] : shrink[0];
  // Below 0 are roundings of 0 alone; what is not a number stays so.
  const float form = square_root ? fast_sqrt(value < 0 ? 0 : value) * grown : value * grown * grown;
  if (lane_column() % 2 == 0 && row < count) of_form[row] = form;
}

}  // namespace laprox::cuda
