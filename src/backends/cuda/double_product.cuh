#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backends/cuda/device.h"

namespace laprox::cuda {

__device__ inline double to_double(float x) { return x; }
__device__ inline double to_double(double x) { return x; }
__device__ inline double to_double(__half x) { return __half2float(x); }
__device__ inline double to_double(__nv_bfloat16 x) { return __bfloat162float(x); }

inline constexpr int kProductSide = 64;  ///< rows and columns of C that one block computes
inline constexpr int kProductDepth = 8;  ///< of A and B in shared memory at a time
inline constexpr int kProductThreads = 256;

/// C [batches, m, n] = A B in float64, for factors that functors read: a(batch, row, k) and b(batch, k, column), k <
/// depth.
template <class Left, class Right>
__global__ void __launch_bounds__(kProductThreads)
    double_product_kernel(int m, int n, int depth, Left a, Right b, double* c) {
  __shared__ double left[kProductDepth][kProductSide], right[kProductDepth][kProductSide];
  const int thread = static_cast<int>(threadIdx.x), batch = static_cast<int>(blockIdx.z);
  const int first_row = static_cast<int>(blockIdx.y) * kProductSide,
            first_column = static_cast<int>(blockIdx.x) * kProductSide;
  const int my_row = thread / 16 * 4, my_column = thread % 16 * 4;
  double sums[4][4] = {};
  for (int start = 0; start < depth; start += kProductDepth) {
    for (int i = thread; i < kProductDepth * kProductSide; i += kProductThreads) {
      const int k = i / kProductSide, at = i % kProductSide;
      const bool inside = start + k < depth;
      left[k][at] = inside && first_row + at < m ? a(batch, first_row + at, start + k) : 0;
      right[k][at] = inside && first_column + at < n ? b(batch, start + k, first_column + at) : 0;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kProductDepth; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += left[k][my_row + i] * right[k][my_column + j];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + my_row + i, column = first_column + my_column + j;
      if (row < m && column < n) c[(static_cast<size_t>(batch) * m + row) * n + column] = sums[i][j];
    }
  }
}

template <class Left, class Right>
void double_product(int batches, int m, int n, int depth, const Left& a, const Right& b, double* c,
                    cudaStream_t stream) {
  const dim3 grid((n + kProductSide - 1) / kProductSide, (m + kProductSide - 1) / kProductSide, batches);
  double_product_kernel<<<grid, kProductThreads, 0, stream>>>(m, n, depth, a, b, c);
  check_launch("a product in float64");
}

}  // namespace laprox::cuda
