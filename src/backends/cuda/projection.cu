#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/tensor_core.cuh"

namespace laprox::cuda {

namespace {

// y = x W in float32 without tensor cores: x holds differences of outputs, of which no bit may be lost to rounding. A
// block makes 64 rows x 64 columns of y at a time, a thread 4 x 4 of them.
constexpr int kTileSize = 64, kDepth = 16, kThreads = 256;
/// Parts into which the columns are cut for sums over whole rows of y: they run side by side and are added in order.
constexpr int kColumnParts = 16;

/// The factors of a product: rows of x at a stride, W with the stride of W_o.
template <class X, class W>
struct Factors {
  const X* x;
  size_t x_stride;
  int rows, depth;
  const W* w;
  int columns, w_stride;
};

/// y[4][4] of this thread: rows first_row + 4 ty + i, columns first_column + 4 tx + j; 0 beyond the edges.
template <class X, class W>
__device__ void product_tile(const Factors<X, W>& f, int first_row, int first_column, float (&y)[4][4]) {
  __shared__ float x_tile[kDepth][kTileSize + 4];
  __shared__ float w_tile[kDepth][kTileSize];
  const int thread = static_cast<int>(threadIdx.x), tx = thread % 16, ty = thread / 16;
  for (auto& row : y) row[0] = row[1] = row[2] = row[3] = 0;
  for (int k = 0; k < f.depth; k += kDepth) {
    __syncthreads();
    for (int i = thread; i < kDepth * kTileSize; i += kThreads) {
      const int row = first_row + i / kDepth, depth = k + i % kDepth;
      x_tile[i % kDepth][i / kDepth] =
          row < f.rows && depth < f.depth ? to_float(f.x[static_cast<size_t>(row) * f.x_stride + depth]) : 0.0F;
      const int column = first_column + i % kTileSize, w_row = k + i / kTileSize;
      w_tile[i / kTileSize][i % kTileSize] = column < f.columns && w_row < f.depth
                                                 ? to_float(f.w[static_cast<size_t>(w_row) * f.w_stride + column])
                                                 : 0.0F;
    }
    __syncthreads();
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) {
      const float4 a = *reinterpret_cast<const float4*>(&x_tile[depth][4 * ty]);
      const float4 b = *reinterpret_cast<const float4*>(&w_tile[depth][4 * tx]);
      const float left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) y[i][j] += left[i] * right[j];
      }
    }
  }
}

template <class W>
__global__ void __launch_bounds__(kThreads) exact_kernel(Factors<float, W> f, const float* bias, float* exact) {
  const int first_row = static_cast<int>(blockIdx.x) * kTileSize,
            first_column = static_cast<int>(blockIdx.y) * kTileSize;
  float y[4][4];
  product_tile(f, first_row, first_column, y);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + 4 * (static_cast<int>(threadIdx.x) / 16) + i;
      const int column = first_column + 4 * (static_cast<int>(threadIdx.x) % 16) + j;
      if (row < f.rows && column < f.columns) {
        exact[static_cast<size_t>(row) * f.columns + column] = y[i][j] + (bias ? bias[column] : 0.0F);
      }
    }
  }
}

/// Sums over the columns of one part, for 64 rows: term(y, row, column) makes a double2 of an element.
template <class X, class W, class Term>
__device__ void row_sums(const Factors<X, W>& f, const Term& term, double2* partial) {
  const int first_row = static_cast<int>(blockIdx.x) * kTileSize, thread = static_cast<int>(threadIdx.x);
  const int tiles = (f.columns + kTileSize - 1) / kTileSize;
  const int first = tiles * static_cast<int>(blockIdx.y) / kColumnParts;
  const int last = tiles * static_cast<int>(blockIdx.y + 1) / kColumnParts;
  double2 sums[4] = {};
  for (int tile = first; tile < last; ++tile) {
    float y[4][4];
    product_tile(f, first_row, tile * kTileSize, y);
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + 4 * (thread / 16) + i;
      for (int j = 0; j < 4; ++j) {
        const int column = tile * kTileSize + 4 * (thread % 16) + j;
        if (row >= f.rows || column >= f.columns) continue;
        const double2 terms = term(y[i][j], row, column);
        sums[i].x += terms.x;
        sums[i].y += terms.y;
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int other = 8; other > 0; other /= 2) {
      sums[i].x += __shfl_xor_sync(~0U, sums[i].x, other);
      sums[i].y += __shfl_xor_sync(~0U, sums[i].y, other);
    }
    const int row = first_row + 4 * (thread / 16) + i;
    if (thread % 16 == 0 && row < f.rows) partial[static_cast<size_t>(blockIdx.y) * f.rows + row] = sums[i];
  }
}

template <class W>
__global__ void __launch_bounds__(kThreads)
    error_sums_kernel(Factors<float, W> f, const float* exact, int queries, double2* partial) {
  row_sums(
      f,
      [=](double y, int row, int column) {
        return make_double2(y * y, y * exact[static_cast<size_t>(row % queries) * f.columns + column]);
      },
      partial);
}

template <class W>
__global__ void __launch_bounds__(kThreads) kept_sums_kernel(Factors<float, W> f, const float* bias, const float* exact,
                                                             const int* query_of_row, double2* partial) {
  row_sums(
      f,
      [=](double y, int row, int column) {
        const double kept = y + (bias ? bias[column] : 0.0F);
        return make_double2(kept * kept, kept * exact[static_cast<size_t>(query_of_row[row]) * f.columns + column]);
      },
      partial);
}

template <class T>
__global__ void __launch_bounds__(kThreads) absolute_sums_kernel(Factors<T, T> f, double2* partial) {
  row_sums(
      f, [](float y, int, int) { return make_double2(fabsf(y), 0); }, partial);
}

__global__ void add_parts_kernel(const double2* partial, int rows, double2* sums) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= rows) return;
  double2 sum{0, 0};
  for (int part = 0; part < kColumnParts; ++part) {
    const double2 of_part = partial[static_cast<size_t>(part) * rows + row];
    sum.x += of_part.x;
    sum.y += of_part.y;
  }
  sums[row] = sum;
}

void add_parts(const double2* partial, int rows, double2* sums, cudaStream_t stream) {
  add_parts_kernel<<<(rows + 255) / 256, 256, 0, stream>>>(partial, rows, sums);
  check_launch("sums over rows");
}

template <class T>
Factors<float, T> output_factors(const Layer& layer, const float* x, int rows) {
  const int depth = layer.query_heads * layer.value_size;
  return {x,
          static_cast<size_t>(depth),
          rows,
          depth,
          static_cast<const T*>(layer.w_o),
          layer.model_size,
          layer.model_stride};
}

}  // namespace

void project_exact(const Layer& layer, const float* heads, int queries, const float* bias, float* exact,
                   cudaStream_t stream) {
  const dim3 grid((queries + kTileSize - 1) / kTileSize, (layer.model_size + kTileSize - 1) / kTileSize);
  for_element(layer.element, [&]<class T>() {
    exact_kernel<T><<<grid, kThreads, 0, stream>>>(output_factors<T>(layer, heads, queries), bias, exact);
  });
  check_launch("exact output");
}

void project_errors(const Layer& layer, const float* deltas, int rows, const float* exact, int queries,
                    DeviceBuffer<double2>& partial, double2* sums, cudaStream_t stream) {
  partial.at_least(static_cast<size_t>(kColumnParts) * rows);
  const dim3 grid((rows + kTileSize - 1) / kTileSize, kColumnParts);
  for_element(layer.element, [&]<class T>() {
    error_sums_kernel<T>
        <<<grid, kThreads, 0, stream>>>(output_factors<T>(layer, deltas, rows), exact, queries, partial.data());
  });
  check_launch("errors of the output");
  add_parts(partial.data(), rows, sums, stream);
}

void project_kept(const Layer& layer, const float* kept, int rows, const float* bias, const float* exact,
                  const int* query_of_row, DeviceBuffer<double2>& partial, double2* sums, cudaStream_t stream) {
  partial.at_least(static_cast<size_t>(kColumnParts) * rows);
  const dim3 grid((rows + kTileSize - 1) / kTileSize, kColumnParts);
  for_element(layer.element, [&]<class T>() {
    kept_sums_kernel<T><<<grid, kThreads, 0, stream>>>(output_factors<T>(layer, kept, rows), bias, exact, query_of_row,
                                                       partial.data());
  });
  check_launch("sums of kept outputs");
  add_parts(partial.data(), rows, sums, stream);
}

void value_absolute_sums(const Layer& layer, int head, DeviceBuffer<double2>& partial, double2* sums,
                         cudaStream_t stream) {
  const int rows = layer.context;
  partial.at_least(static_cast<size_t>(kColumnParts) * rows);
  const dim3 grid((rows + kTileSize - 1) / kTileSize, kColumnParts);
  for_element(layer.element, [&]<class T>() {
    const T* values =
        static_cast<const T*>(layer.v) + static_cast<size_t>(head / layer.group) * layer.tokens * layer.value_stride;
    const T* w = static_cast<const T*>(layer.w_o) + static_cast<size_t>(head) * layer.value_size * layer.model_stride;
    const Factors<T, T> factors{values,
                                static_cast<size_t>(layer.value_stride),
                                rows,
                                layer.value_size,
                                w,
                                layer.model_size,
                                layer.model_stride};
    absolute_sums_kernel<T><<<grid, kThreads, 0, stream>>>(factors, partial.data());
  });
  check_launch("L1 norms of values");
  add_parts(partial.data(), rows, sums, stream);
}

}  // namespace laprox::cuda
