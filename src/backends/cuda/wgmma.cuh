#pragma once

#include <cuda.h>

#include <type_traits>

#include "backends/cuda/tensor_core.cuh"

namespace laprox::cuda {

// What the kernels for sm_90a need of it: the tensor cores' instruction for four warps at once (wgmma), bulk copies
// to shared memory, and turns between warpgroups. The PTX manual describes each (wgmma.mma_async, cp.async.bulk,
// mbarrier, bar).

/// How a right factor lies in shared memory. Counted on in chunks of 16 bytes.
class RightFactor {
 public:
  /// Pieces of 8 columns x 16 bytes: the two halves of a step of the depth, one behind the other, then the next
  /// columns.
  __device__ static RightFactor pieces(const uint4* chunks) { return {chunks, 128, 256}; }
  /// Panels of 128 bytes of every column, eight columns' chunks exchanged as wgmma's 128-byte swizzle has it. A step of
  /// the depth is two chunks.
  __device__ static RightFactor panels(const uint4* chunks) { return {chunks, 16, 1024, 1U << 30}; }

  __device__ RightFactor operator+(int chunks) const {
    RightFactor sum = *this;
    sum.low_ += static_cast<unsigned>(chunks);
    return sum;
  }
  __device__ unsigned long long description() const { return static_cast<unsigned long long>(high_) << 32 | low_; }

 private:
  /// The exchange tells the compiler that all lanes have the same, so that descriptions live in uniform registers.
  __device__ RightFactor(const uint4* chunks, unsigned along_depth, unsigned along_columns, unsigned swizzle = 0)
      : low_(__shfl_sync(~0U, shared_address(chunks) >> 4 | along_depth >> 4 << 16, 0)),
        high_(along_columns >> 4 | swizzle) {}

  unsigned low_, high_;
};

/// Lets wgmma see what this thread's copies brought to shared memory: it reads on another way than they write.
__device__ inline void publish_tiles() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/// Orders earlier uses of registers before the products that come now.
__device__ inline void start_wgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// What was started since the last call is one group.
__device__ inline void commit_wgmma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits for all groups but the last `Pending` ones; `c`, of which none of these is a part, may be read then.
template <int Pending = 0, int N, int M>
__device__ inline void wait_wgmma(float (&c)[N][M]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#pragma unroll
  for (auto& tiles : c) {
#pragma unroll
    for (float& x : tiles) asm volatile("" : "+f"(x)::"memory");  // no use of x moves before the wait
  }
}

template <int Pending = 0, int N>
__device__ inline void wait_wgmma(float (&c)[N]) {
  wait_wgmma<Pending>(reinterpret_cast<float(&)[1][N]>(c));
}

/// Starts c (+)= left times right, 64 rows by 4 column tiles, over one step of 16 elements of a half type. left: this
/// lane's registers of the fragment, as mma.sync has them; c: its accumulators, one tile behind the other.
template <class T = __half>
__device__ inline void wgmma(float (&c)[16], const unsigned (&left)[4], RightFactor right, bool accumulate) {
#define LAPROX_WGMMA(type)                                                                                          \
  asm volatile(                                                                                                     \
      "{\n"                                                                                                         \
      ".reg .pred accumulate;\n"                                                                                    \
      "setp.ne.b32 accumulate, %21, 0;\n"                                                                           \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                                                   \
      " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, accumulate, 1, 1, 0;\n"    \
      "}\n"                                                                                                         \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), \
        "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15])                    \
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right.description()),                           \
        "r"(static_cast<int>(accumulate)))
  if constexpr (std::is_same_v<T, __half>) {
    LAPROX_WGMMA("f16");
  } else {
    LAPROX_WGMMA("bf16");
  }
#undef LAPROX_WGMMA
}

/// Starts c (+)= left times right, 64 rows by 8 column tiles, over one step of 16 elements of a half type. In panels
/// the right factor's columns are rows of 128 bytes, with the step's elements side by side; Transposed, its 16 elements
/// are rows, with the 64 columns side by side.
template <class T, bool Transposed = false>
__device__ inline void wgmma(float (&c)[8][4], const unsigned (&left)[4], RightFactor right, bool accumulate) {
#define LAPROX_WGMMA(type)                                                                                           \
  asm volatile(                                                                                                      \
      "{\n"                                                                                                          \
      ".reg .pred accumulate;\n"                                                                                     \
      "setp.ne.b32 accumulate, %37, 0;\n"                                                                            \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                                    \
      " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
      "%29,%30,%31}, {%32,%33,%34,%35}, %36, accumulate, 1, 1, %38;\n"                                               \
      "}\n"                                                                                                          \
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),     \
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),     \
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),     \
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),     \
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])                                                   \
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right.description()),                            \
        "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(Transposed)))
  if constexpr (std::is_same_v<T, __half>) {
    LAPROX_WGMMA("f16");
  } else {
    LAPROX_WGMMA("bf16");
  }
#undef LAPROX_WGMMA
}

/// Says when something has arrived in shared memory, or was read there, again and again: a bulk copy, or what `count`
/// threads stand for.
class Arrival {
 public:
  __device__ void init(int count = 1) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(count));
  }
  /// This thread's part of it; what it wrote before is visible to those who wait.
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  /// The same for a thread that starts copies of so many bytes: they have to arrive too.
  __device__ void expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }
  /// Starts to copy `bytes`, a multiple of 16, of those that are expected.
  __device__ void start_copy(uint4* target, const void* source, int bytes) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(target)),
                 "l"(source), "r"(bytes), "r"(shared_address(this))
                 : "memory");
  }
  /// The same for a panel of 64 elements by the map's rows of a matrix (tile_map.h).
  __device__ void start_panel(uint4* target, const CUtensorMap& map, int element, int row, int matrix) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
            "r"(shared_address(target)),
        "l"(&map), "r"(element), "r"(row), "r"(matrix), "r"(shared_address(this))
        : "memory");
  }
  /// Expects and starts one copy.
  __device__ void copy(uint4* target, const uint4* source, int bytes) {
    expect(bytes);
    start_copy(target, source, bytes);
  }
  /// Waits for all of it; `parity` is 0 for the first time, 1 for the second one, 0 for the third one and so on.
  __device__ void wait(int parity) {
    // The loop is the assembler's, so that the compiler knows the warp's threads to be together after it.
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
  }

 private:
  unsigned long long state_;
};

/// Lets copies and other threads see arrivals that were initialised.
__device__ inline void publish_arrivals() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

/// Turns of a block's kGroups warpgroups, one after the other and round again; all of them take equally many.
template <int kGroups>
class Turns {
 public:
  __device__ explicit Turns(int group) : own_(1 + group), next_(1 + (group + 1) % kGroups) {
    if (group == kGroups - 1) pass_on();
  }
  __device__ void wait() const { asm volatile("bar.sync %0, 256;" ::"r"(own_) : "memory"); }
  __device__ void pass_on() const { asm volatile("bar.arrive %0, 256;" ::"r"(next_) : "memory"); }
  /// Takes the turn that the last one passes on in vain.
  __device__ void end() const {
    if (own_ == 1) wait();
  }

 private:
  int own_, next_;  ///< named barriers, on which two warpgroups meet; 0 is __syncthreads
};

}  // namespace laprox::cuda
