#include <algorithm>

#include "backends/cuda/memory.h"

namespace laprox::cuda {

namespace {

/// Rows of elements: row r = a * rows + b lies at a * strides[0] + b * strides[1], its elements strides[2] apart.
struct Rows {
  long long count, per_slice, width;
  long long strides[3];

  explicit Rows(const StridedArray& array) {
    const std::size_t rank = array.shape.size();
    width = array.shape[rank - 1];
    per_slice = rank > 1 ? array.shape[rank - 2] : 1;
    count = rank > 2 ? array.shape[0] * per_slice : per_slice;
    strides[2] = array.strides[rank - 1];
    strides[1] = rank > 1 ? array.strides[rank - 2] : 0;
    strides[0] = rank > 2 ? array.strides[0] : 0;
  }
  __device__ long long place(long long row, long long column) const {
    return row / per_slice * strides[0] + row % per_slice * strides[1] + column * strides[2];
  }
};

constexpr int kThreads = 256;
constexpr long long kMostBlocks = 1 << 16;

unsigned blocks_for(long long elements) {
  return static_cast<unsigned>(std::clamp((elements + kThreads - 1) / kThreads, 1LL, kMostBlocks));
}

/// Thread per element of the packed rows.
template <class Bits>
__global__ void pack_kernel(const Bits* source, Rows rows, long long stride, Bits* target) {
  const long long all = rows.count * stride, step = static_cast<long long>(gridDim.x) * kThreads;
  for (long long i = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x; i < all; i += step) {
    const long long row = i / stride, column = i % stride;
    target[i] = column < rows.width ? source[rows.place(row, column)] : Bits{0};
  }
}

/// Thread per element; a number whose exponent's bits are all set is none.
template <class Bits>
__global__ void non_finite_kernel(const Bits* source, Rows rows, Bits exponent, unsigned long long* smallest) {
  const long long all = rows.count * rows.width, step = static_cast<long long>(gridDim.x) * kThreads;
  for (long long i = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x; i < all; i += step) {
    const Bits bits = source[rows.place(i / rows.width, i % rows.width)];
    if ((bits & exponent) == exponent) atomicMin(smallest, static_cast<unsigned long long>(i));
  }
}

}  // namespace

void pack_rows(const StridedArray& array, Index stride, std::byte* target, cudaStream_t stream) {
  const Rows rows(array);
  const unsigned blocks = blocks_for(rows.count * stride);
  if (size_of(array.type) == 2) {
    pack_kernel<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<const unsigned short*>(array.data), rows, stride,
                                                 reinterpret_cast<unsigned short*>(target));
  } else {
    pack_kernel<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<const unsigned*>(array.data), rows, stride,
                                                 reinterpret_cast<unsigned*>(target));
  }
  check_launch("packing a layer's rows");
}

void find_non_finite(const StridedArray& array, unsigned long long* smallest, cudaStream_t stream) {
  check(cudaMemsetAsync(smallest, 0xff, sizeof(*smallest), stream), "clearing device memory");
  const Rows rows(array);
  const unsigned blocks = blocks_for(array.size());
  if (size_of(array.type) == 2) {
    const unsigned short exponent = array.type == ElementType::float16 ? 0x7c00 : 0x7f80;
    non_finite_kernel<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<const unsigned short*>(array.data), rows,
                                                       exponent, smallest);
  } else {
    non_finite_kernel<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<const unsigned*>(array.data), rows, 0x7f800000U,
                                                       smallest);
  }
  check_launch("looking for numbers that are not finite");
}

}  // namespace laprox::cuda
