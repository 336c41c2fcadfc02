#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backends/cuda/device.h"

namespace laprox::cuda {

__device__ inline double to_double(float x) { return x; }
__device__ inline double to_double(double x) { return x; }
__device__ inline double to_double(__half x) { return __half2float(x); }
__device__ inline double to_double(__nv_bfloat16 x) { return __bfloat162float(x); }

inline constexpr int kProductSide = 64;   ///< rows and columns of C that one block computes
inline constexpr int kProductDepth = 16;  ///< of A and B in shared memory at a time
inline constexpr int kProductThreads = 256;
/// Rows of shared memory: the four by four numbers that half a warp reads at once lie in different banks.
inline constexpr int kProductStride = kProductSide + 4;

/// c += a b on the tensor cores, 8 x 4 times 4 x 8: lane 4 g + t has row g of a and column g of b at depth t, and the
/// columns 2 t and 2 t + 1 of row g of c.
__device__ inline void multiply_doubles(double (&c)[2], double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c[0]), "+d"(c[1])
      : "d"(a), "d"(b));
}

/// One factor's next kProductDepth rows of 64 numbers, on their way to shared memory through registers: `read(at, k)`
/// reads number `at` of the row at depth k.
class ProductTile {
 public:
  template <class Read>
  __device__ void load(int start, int depth, int first, int end, const Read& read) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int k = start + row() + i * kRows, at = first + place();
      values_[i] = k < depth && at < end ? read(at, k) : 0;
    }
  }
  __device__ void store(double (&shared)[kProductDepth][kProductStride]) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) shared[row() + i * kRows][place()] = values_[i];
  }

 private:
  static constexpr int kRows = kProductThreads / kProductSide, kEach = kProductDepth / kRows;
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kProductSide; }
  __device__ static int place() { return static_cast<int>(threadIdx.x) % kProductSide; }
  double values_[kEach];
};

/// C [batches, m, n] in memory.
struct StoreProduct {
  double* c;
  int m, n;
  __device__ void operator()(int batch, int row, int column, double value) const {
    c[(static_cast<size_t>(batch) * m + row) * n + column] = value;
  }
};

/// C [batches, m, n] = A B in float64, for factors that functors read, a(batch, row, k) and b(batch, k, column), k <
/// depth, and a product that store(batch, row, column, value) takes. A warp has 16 rows and 32 columns of a block's
/// square.
template <class Left, class Right, class Store>
__global__ void __launch_bounds__(kProductThreads)
    double_product_kernel(int m, int n, int depth, Left a, Right b, Store store) {
  __shared__ double left[kProductDepth][kProductStride], right[kProductDepth][kProductStride];
  const int batch = static_cast<int>(blockIdx.z), warp = static_cast<int>(threadIdx.x) / 32,
            lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = static_cast<int>(blockIdx.y) * kProductSide,
            first_column = static_cast<int>(blockIdx.x) * kProductSide;
  const int my_row = warp / 2 * 16 + lane / 4, my_column = warp % 2 * 32 + lane / 4;
  const auto read_left = [&](int row, int k) { return a(batch, row, k); };
  const auto read_right = [&](int column, int k) { return b(batch, k, column); };
  ProductTile next_left, next_right;
  next_left.load(0, depth, first_row, m, read_left);
  next_right.load(0, depth, first_column, n, read_right);
  double sums[2][4][2] = {};
  for (int start = 0; start < depth; start += kProductDepth) {
    next_left.store(left);
    next_right.store(right);
    __syncthreads();
    next_left.load(start + kProductDepth, depth, first_row, m, read_left);
    next_right.load(start + kProductDepth, depth, first_column, n, read_right);
#pragma unroll
    for (int k = 0; k < kProductDepth; k += 4) {
      double rows[2], columns[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) rows[i] = left[k + lane % 4][my_row + 8 * i];
#pragma unroll
      for (int j = 0; j < 4; ++j) columns[j] = right[k + lane % 4][my_column + 8 * j];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_doubles(sums[i][j], rows[i], columns[j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = first_row + my_row + 8 * i;
        const int column = first_column + warp % 2 * 32 + 8 * j + 2 * (lane % 4) + e;
        if (row < m && column < n) store(batch, row, column, sums[i][j][e]);
      }
    }
  }
}

template <class Left, class Right, class Store>
void double_product(int batches, int m, int n, int depth, const Left& a, const Right& b, const Store& store,
                    cudaStream_t stream) {
  const dim3 grid((n + kProductSide - 1) / kProductSide, (m + kProductSide - 1) / kProductSide, batches);
  double_product_kernel<<<grid, kProductThreads, 0, stream>>>(m, n, depth, a, b, store);
  check_launch("a product in float64");
}
template <class Left, class Right>
void double_product(int batches, int m, int n, int depth, const Left& a, const Right& b, double* c,
                    cudaStream_t stream) {
  double_product(batches, m, n, depth, a, b, StoreProduct{c, m, n}, stream);
}

}  // namespace laprox::cuda
