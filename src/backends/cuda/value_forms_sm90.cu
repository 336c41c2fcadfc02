#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/token_values.cuh"
#include "backends/cuda/wgmma.cuh"

namespace laprox::cuda {

namespace {

constexpr int kGroupThreads = 128;  ///< of a warpgroup, which has 64 tokens, 16 per warp
constexpr int kGroupTokens = 64;
constexpr int kTogether = 4;  ///< blocks of columns that a warpgroup works on at once: 64 accumulators per thread

/// Warpgroups per block, what registers allow.
template <int Size>
constexpr int kGroups = Size <= 128 ? 3 : 2;

/// The blocks of columns [First, First + kTogether) of v U for a warpgroup's tokens, started but not waited for.
template <class T, int Size, int First, int Together>
__device__ inline void start_products(float (&c)[Together][16], const TokenValues<T, Size, 1>& v, RightFactor form) {
  using F = Forms<T, Size>;
  start_wgmma();
#pragma unroll
  for (int part = 0; part < F::kParts; ++part) {
#pragma unroll
    for (int b = 0; b < First + Together; ++b) {
      const uint4 &top = v.chunks[0][0][b], &bottom = v.chunks[0][1][b];
      const unsigned steps[2][4] = {{top.x, bottom.x, top.y, bottom.y}, {top.z, bottom.z, top.w, bottom.w}};
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int n = 0; n < Together; ++n) {
          if (b > First + n) continue;
          const int at = part * F::kPartChunks + F::square(First + n, b) + step * F::kStepChunks;
          wgmma(c[n], steps[step], form + at, part > 0 || b > 0 || step > 0);
        }
      }
    }
  }
  commit_wgmma();
}

/// Adds <v, v U> over those blocks of columns, this lane's share of it, to the sums of the rows g and g + 8.
template <class T, int Size, int First, int Together>
__device__ inline void add_products(float (&sums)[2], const float (&c)[Together][16],
                                    const TokenValues<T, Size, 1>& v) {
  float odd[2] = {};  // two chains of sums per row
#pragma unroll
  for (int n = 0; n < Together; ++n) {
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 x = v.pair(0, half, 4 * (First + n) + tile);
        sums[half] = __fmaf_rn(c[n][4 * tile + 2 * half], x.x, sums[half]);
        odd[half] = __fmaf_rn(c[n][4 * tile + 2 * half + 1], x.y, odd[half]);
      }
    }
  }
  sums[0] += odd[0];
  sums[1] += odd[1];
}

/// A warpgroup's shares of one form at its tokens. Warpgroups take turns with the tensor cores, so that one's sums are
/// formed under the others' products.
template <class T, int Size, int First = 0>
__device__ inline void evaluate(float (&sums)[2], const TokenValues<T, Size, 1>& v, RightFactor form,
                                const Turns<kGroups<Size>>& turns) {
  constexpr int kBlocks = Forms<T, Size>::kBlocks, kNow = kBlocks < kTogether ? kBlocks : kTogether;
  float c[kNow][16];
  turns.wait();
  start_products<T, Size, First>(c, v, form);
  turns.pass_on();
  wait_wgmma(c);
  add_products<T, Size, First>(sums, c, v);
  if constexpr (First + kNow < kBlocks) evaluate<T, Size, First + kNow>(sums, v, form, turns);
}

/// What a block has in shared memory, behind one another: forms, its warps' tokens, scales and arrivals.
template <class T, int Size>
struct SharedLayout {
  static constexpr int kWarps = 4 * kGroups<Size>, kTileChunks = 16 * Forms<T, Size>::kRow;
  /// Of a form with its scale and arrival, and of the rest.
  static constexpr int kFormBytes = Forms<T, Size>::kBytes + 16, kOtherBytes = kWarps * (kTileChunks * 16 + 8);

  uint4 *forms, *tokens;
  Arrival *of_form, *of_tokens;
  float* scales;

  __device__ SharedLayout(uint4* shared, int per_block)
      : forms(shared),
        tokens(forms + per_block * Forms<T, Size>::kChunks),
        of_form(reinterpret_cast<Arrival*>(tokens + kWarps * kTileChunks)),
        of_tokens(of_form + per_block),
        scales(reinterpret_cast<float*>(of_tokens + kWarps)) {}
};

/// One warp's tokens, 16 at a time: the next ones travel to shared memory while it works on those in its registers.
template <class T, int Size>
class TokenStream {
 public:
  __device__ TokenStream(const Layer& layer, int kv_head, uint4* tile, Arrival* arrival)
      : values_(static_cast<const uint4*>(layer.v) + static_cast<size_t>(kv_head) * layer.tokens * kRow),
        context_(layer.context),
        tile_(tile),
        arrival_(arrival) {}

  /// Starts to copy the tokens from `first` on. One lane does; all must be done with the ones before.
  __device__ void start(int first) {
    __syncwarp();
    const int count = min(16, context_ - first);
    if (threadIdx.x % 32 == 0 && count > 0) {
      arrival_->copy(tile_, values_ + static_cast<size_t>(first) * kRow, count * kRow * 16);
    }
  }
  /// The tokens from `first` on, whose copy was started; the rows of tokens that there are not hold anything.
  __device__ void take(TokenValues<T, Size, 1>& v, int first) {
    if (first < context_) arrival_->wait(turn_++ % 2);
    v.load(tile_, 16);
  }

 private:
  static constexpr int kRow = Chunks<T, Size>::kRow;
  const uint4* values_;
  int context_;
  uint4* tile_;
  Arrival* arrival_;
  int turn_ = 0;
};

/// Block (FormsShare, KV head) keeps its forms in shared memory; its warpgroups take their tokens from memory once for
/// all of them.
template <class T, int Size>
__global__ void __launch_bounds__(kGroupThreads* kGroups<Size>, 1)
    value_forms_kernel(Layer layer, const uint4* triangles, const float* scales, int per_kv_head, int groups,
                       bool square_root, float* out) {
  using F = Forms<T, Size>;
  extern __shared__ __align__(1024) uint4 shared[];
  const FormsShare own(per_kv_head, groups);
  const int kv_head = static_cast<int>(blockIdx.y), count = own.count, form = kv_head * per_kv_head + own.first;
  const SharedLayout<T, Size> in_shared(shared, count);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, group = thread / kGroupThreads;
  if (thread == 0) {
    for (int f = 0; f < count; ++f) in_shared.of_form[f].init();
    for (int w = 0; w < in_shared.kWarps; ++w) in_shared.of_tokens[w].init();
    publish_arrivals();
    for (int f = 0; f < count; ++f) {
      in_shared.scales[f] = scales[form + f];
      in_shared.of_form[f].copy(in_shared.forms + f * F::kChunks,
                                triangles + static_cast<size_t>(form + f) * F::kChunks, F::kBytes);
    }
  }
  __syncthreads();

  constexpr int kBlockTokens = kGroups<Size> * kGroupTokens;
  const int stride = own.shares * kBlockTokens;
  TokenStream<T, Size> stream(layer, kv_head, in_shared.tokens + warp * in_shared.kTileChunks,
                              in_shared.of_tokens + warp);
  stream.start(own.share * kBlockTokens + 16 * warp);
  for (int f = 0; f < count; ++f) in_shared.of_form[f].wait(0);
  const Turns<kGroups<Size>> turns(group);
  for (int block_token = own.share * kBlockTokens; block_token < layer.context; block_token += stride) {
    const int token = block_token + 16 * warp;
    TokenValues<T, Size, 1> v;
    float shrink[1][2];
    stream.take(v, token);
    stream.start(token + stride);
    v.fit(shrink);
#pragma unroll 1
    for (int f = 0; f < count; ++f) {
      float sums[2] = {};
      evaluate<T, Size>(sums, v, RightFactor::pieces(in_shared.forms + f * F::kChunks), turns);
      store_forms(sums, in_shared.scales[f], shrink[0], square_root, layer.context - token,
                  out + static_cast<size_t>(form + f) * layer.context + token);
    }
  }
  turns.end();
}

}  // namespace

void value_forms_sm90(const Layer& layer, const PackedForms& forms, int per_kv_head, bool square_root, float* out,
                      cudaStream_t stream) {
  for_half_and_size(layer.element, layer.value_stride, [&]<class T, int Size>() {
    using S = SharedLayout<T, Size>;
    const FormsLaunch launch(layer, per_kv_head, S::kFormBytes, S::kOtherBytes, kGroups<Size> * kGroupTokens);
    allow_shared_memory(value_forms_kernel<T, Size>, launch.shared_bytes);
    value_forms_kernel<T, Size><<<launch.grid, kGroupThreads * kGroups<Size>, launch.shared_bytes, stream>>>(
        layer, forms.triangles.data(), forms.scales.data(), per_kv_head, launch.groups, square_root, out);
  });
  check_launch("value forms");
}

}  // namespace laprox::cuda
