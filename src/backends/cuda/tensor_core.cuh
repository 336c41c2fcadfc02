#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace laprox::cuda {

// One way to feed the tensor cores, for every element type. A lane of a warp is (g, t) = (lane / 4, lane % 4). Rows are
// counted in CHUNKS of 16 bytes and BLOCKS of 64. There are two ways from memory to registers, both without shuffling:
//
// - by STEPS of 32 bytes, the left factor through ldmatrix from shared memory: for what streams (stream.cuh, gram.cu);
// - by blocks, each lane loading chunk t of the row g: for what is loaded from device memory and stays
// (value_forms.cu).
//   A sum over the elements of a row does not mind their order, so the k index that the instruction gives a register is
//   left to fall where it likes, the same for both factors.
//
// An accumulator tile c[4] of 16 rows x 8 columns: lane (g, t) has c[0], c[1] = row g, columns 2t, 2t + 1 and c[2],
// c[3] = row g + 8, the same columns.

/// How rows of `Size` elements of T are cut into chunks.
template <class T, int Size>
struct Chunks {
  static constexpr int kElements = 16 / static_cast<int>(sizeof(T));  ///< in a chunk
  static constexpr int kRow = Size / kElements;                       ///< chunks in a row
  static constexpr int kBlocks = kRow / 4;                            ///< 64-byte blocks in a row
};

__device__ inline int lane_row() { return static_cast<int>(threadIdx.x) % 32 / 4; }     ///< g
__device__ inline int lane_column() { return static_cast<int>(threadIdx.x) % 32 % 4; }  ///< t

__device__ inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

/// ldmatrix: four pieces of 8 rows x 16 bytes, lanes 8 m .. 8 m + 7 pointing to the rows of piece m; lane (g, t) gets
/// word t of row g of each.
__device__ inline uint4 load_pieces(unsigned row_address) {
  uint4 pieces;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(pieces.x), "=r"(pieces.y), "=r"(pieces.z), "=r"(pieces.w)
               : "r"(row_address));
  return pieces;
}

/// The same with each piece transposed: lane (g, t) gets the elements (2 t, g) and (2 t + 1, g) of each.
__device__ inline uint4 load_transposed_pieces(unsigned row_address) {
  uint4 pieces;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(pieces.x), "=r"(pieces.y), "=r"(pieces.z), "=r"(pieces.w)
               : "r"(row_address));
  return pieces;
}

namespace detail {

__device__ inline void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1,
                           __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1,
                           __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void mma_tf32(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// The 11 leading bits of a float, and of what they leave: together all but the last bit or two.
struct SplitFloat {
  unsigned high, low;
  __device__ explicit SplitFloat(unsigned bits) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(high) : "f"(__uint_as_float(bits)));
    const float rest = __uint_as_float(bits) - __uint_as_float(high);
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(low) : "f"(rest));
  }
};

/// float32 on tensor cores: each factor as a sum of two tf32 numbers; the product of the two small parts is below
/// float32's own rounding and left out.
__device__ inline void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1,
                           float) {
  const SplitFloat x0(a0), x1(a1), x2(a2), x3(a3), y0(b0), y1(b1);
  mma_tf32(c, x0.low, x1.low, x2.low, x3.low, y0.high, y1.high);
  mma_tf32(c, x0.high, x1.high, x2.high, x3.high, y0.low, y1.low);
  mma_tf32(c, x0.high, x1.high, x2.high, x3.high, y0.high, y1.high);
}

}  // namespace detail

/// c += left times right over one STEP, 32 bytes of each row. left: the fragment of 16 rows as ldmatrix delivers it;
/// right: the bytes 4 t and 16 + 4 t of row g of the (transposed) right factor.
template <class T>
__device__ inline void multiply_step(float (&c)[4], const uint4& left, const uint2& right) {
  detail::mma(c, left.x, left.y, left.z, left.w, right.x, right.y, T{});
}

template <class T>
__device__ inline void multiply_step(float (&c)[4], const unsigned (&left)[4], unsigned right0, unsigned right1) {
  detail::mma(c, left[0], left[1], left[2], left[3], right0, right1, T{});
}

/// c += top/bottom rows times column, over the elements of one chunk of each of the four t's: the rows g and g + 8 of
/// the left factor, row g of the (transposed) right one. With half_only, over the first half of each chunk alone.
template <class T>
__device__ inline void multiply(float (&c)[4], const uint4& top, const uint4& bottom, const uint4& column,
                                bool half_only = false) {
  detail::mma(c, top.x, bottom.x, top.y, bottom.y, column.x, column.y, T{});
  if (!half_only) detail::mma(c, top.z, bottom.z, top.w, bottom.w, column.z, column.w, T{});
}

__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(float x) { return x; }

}  // namespace laprox::cuda
