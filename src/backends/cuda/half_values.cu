#include <algorithm>

#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/half_removal.h"
#include "backends/cuda/tensor_core.cuh"

namespace laprox::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 64;  ///< per KV head, each with a share of the tokens
/// What a block knows of its share: the sum of each component, the sum of all squares and the largest magnitude.
constexpr int part_size(int size) { return size + 2; }

__device__ inline void add_vector(float (&sums)[8], float& square, float& largest, const float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    sums[i] += x[i];
    square += x[i] * x[i];
    largest = fmaxf(largest, fabsf(x[i]));
  }
}

template <class T>
__device__ inline void read_eight(float (&x)[8], const uint4& chunk) {
  const T* elements = reinterpret_cast<const T*>(&chunk);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = to_float(elements[i]);
}

/// Block (share of the tokens, KV head): parts [kv_heads, kBlocks, part_size]. A thread has eight components.
template <class T, int Size>
__global__ void __launch_bounds__(kThreads) spread_kernel(Layer layer, float* parts) {
  constexpr int kRow = Chunks<T, Size>::kRow, kTokens = kThreads / kRow;
  __shared__ float sums_of[kTokens][Size], square_of[kThreads], largest_of[kThreads];
  const int thread = static_cast<int>(threadIdx.x), chunk = thread % kRow;
  const uint4* rows = static_cast<const uint4*>(layer.v) + static_cast<size_t>(blockIdx.y) * layer.tokens * kRow;
  float sums[8] = {}, square = 0, largest = 0;
  for (int token = static_cast<int>(blockIdx.x) * kTokens + thread / kRow; token < layer.tokens;
       token += kBlocks * kTokens) {
    float x[8];
    read_eight<T>(x, rows[static_cast<size_t>(token) * kRow + chunk]);
    add_vector(sums, square, largest, x);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sums_of[thread / kRow][8 * chunk + i] = sums[i];
  square_of[thread] = square;
  largest_of[thread] = largest;
  __syncthreads();
  float* part = parts + (static_cast<size_t>(blockIdx.y) * kBlocks + blockIdx.x) * part_size(Size);
  if (thread < Size) {
    float sum = 0;
    for (const auto& of_token : sums_of) sum += of_token[thread];
    part[thread] = sum;
  }
  if (thread == 0) {
    for (int i = 1; i < kThreads; ++i) {
      square += square_of[i];
      largest = fmaxf(largest, largest_of[i]);
    }
    part[Size] = square;
    part[Size + 1] = largest;
  }
}

/// Block per KV head: the power of two that undoes the values' scale, and the variance's share of the mean square.
__global__ void __launch_bounds__(kThreads)
    finish_spread_kernel(const float* parts, int size, int tokens, bool scaled, float* scales, float* shares) {
  __shared__ float squares[kThreads];
  const int thread = static_cast<int>(threadIdx.x), stride = part_size(size);
  const float* of_head = parts + static_cast<size_t>(blockIdx.x) * kBlocks * stride;
  float mean = 0;
  for (int block = 0; thread < size && block < kBlocks; ++block) mean += of_head[block * stride + thread];
  mean /= static_cast<float>(tokens);
  squares[thread] = thread < size ? mean * mean : 0;
  __syncthreads();
  if (thread != 0) return;
  float of_mean = 0, square = 0, largest = 0;
  for (float x : squares) of_mean += x;
  for (int block = 0; block < kBlocks; ++block) {
    square += of_head[block * stride + size];
    largest = fmaxf(largest, of_head[block * stride + size + 1]);
  }
  // The largest magnitude goes to [2^13, 2^14): what is 2^-38 of it still has all of its eight bits.
  scales[blockIdx.x] = scaled && largest > 0 ? exp2f(fmaxf(floorf(log2f(largest)) - 13, -120)) : 1;
  square /= static_cast<float>(tokens);
  shares[blockIdx.x] = square > 0 ? 1 - of_mean / square : 1;
}

/// bfloat16 values as float16 numbers. Block (share of the tokens, KV head).
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const uint4* values, size_t chunks, const float* scales, uint4* converted) {
  const float grow = 1 / scales[blockIdx.y];
  const size_t first = static_cast<size_t>(blockIdx.y) * chunks;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < chunks; i += gridDim.x * kThreads) {
    float x[8];
    read_eight<__nv_bfloat16>(x, values[first + i]);
    __align__(16) __half2 pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) pairs[j] = __floats2half2_rn(x[2 * j] * grow, x[2 * j + 1] * grow);
    converted[first + i] = *reinterpret_cast<const uint4*>(pairs);
  }
}

}  // namespace

void half_values(HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream) {
  const Layer& layer = terms.layer;
  const int size = layer.value_stride;
  const bool scaled = layer.element == Element::bfloat16;
  float* parts = scratch.value_parts.at_least(static_cast<size_t>(layer.kv_heads) * kBlocks * part_size(size));
  float* scales = scratch.value_scales.at_least(static_cast<size_t>(layer.kv_heads));
  for_half_and_size(layer.element, size, [&]<class T, int Size>() {
    spread_kernel<T, Size><<<dim3(kBlocks, layer.kv_heads), kThreads, 0, stream>>>(layer, parts);
  });
  check_launch("spread of values");
  finish_spread_kernel<<<layer.kv_heads, kThreads, 0, stream>>>(parts, size, layer.tokens, scaled, scales,
                                                                terms.fitness);
  check_launch("finishing the spread of values");
  terms.values = static_cast<const __half*>(layer.v);
  terms.value_scales = scales;
  if (scaled) {
    const size_t chunks = static_cast<size_t>(layer.tokens) * size / 8;
    __half* converted = scratch.values.at_least(chunks * 8 * layer.kv_heads);
    const dim3 grid(static_cast<unsigned>(std::min<size_t>((chunks + kThreads - 1) / kThreads, 512)), layer.kv_heads);
    convert_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const uint4*>(layer.v), chunks, scales,
                                                  reinterpret_cast<uint4*>(converted));
    check_launch("values as float16");
    terms.values = converted;
  }
}

}  // namespace laprox::cuda
