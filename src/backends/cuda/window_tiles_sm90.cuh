#pragma once

#include "backends/cuda/half_removal.h"
#include "backends/cuda/left_rows.cuh"
#include "backends/cuda/ring_sm90.cuh"

namespace laprox::cuda {

// What window_energies_sm90.cu has in shared memory.

inline constexpr int kQueries = kRowBlockRows;  ///< streamed at a time: those of one head, or their moments of one pair
inline constexpr int kWarpTokens = 16, kGroupTokens = 4 * kWarpTokens;  ///< of a warp and of a warpgroup

/// Shape of a ring whose tiles are queries with their RowTerms or moments with their PairTerms, and of what stands
/// behind the ring in shared memory: keys and values of the block's tokens, and each warp's forms.
template <int Size, int Heads>
struct WindowTiles {
  static constexpr int kPanelChunks = kQueries * 8;
  static constexpr int kTermChunks = 2 * Size / 64 * kPanelChunks;  ///< where the terms begin
  /// Panels of the next tile are exchanged within 1024 bytes.
  static constexpr int kTileBytes = 16 * kTermChunks + 1024;
  static constexpr int kGroups = Heads <= 4 ? 3 : 2;  ///< warpgroups: registers hold the odds of all heads
  static constexpr int kStages = 6 * 128 / Size;
  static constexpr int kBlockTokens = kGroups * kGroupTokens;
  static constexpr int kPairs = Heads * (Heads + 1) / 2, kTiles = Heads + kPairs;  ///< of a block of queries
  static constexpr int kTokenChunks = kGroupTokens * Size / 8;                     ///< of a warpgroup's keys
  static constexpr int kFormsBegin = kStages * kTileBytes + 2 * kGroups * kTokenChunks * 16;
  static constexpr int kSharedBytes = kFormsBegin + 4 * kGroups * kPairs * kWarpTokens * 4;
  static_assert(kQueries * sizeof(RowTerms) <= 1024);
};

/// Keys and values of a block's tokens in shared memory. The thread that fills the ring has them copied, for one pass
/// over a block of queries after the other; each warpgroup takes its own to registers.
template <class S>
class BlockTokens {
 public:
  struct Signals {
    Arrival filled[2][S::kGroups], read[2][S::kGroups];
  };

  /// One thread must init; the ring's constructor makes it known.
  __device__ BlockTokens(uint4* chunks, Signals& signals) : chunks_(chunks), signals_(signals) {
    if (threadIdx.x != 0) return;
    for (int which = 0; which < 2; ++which) {
      for (int group = 0; group < S::kGroups; ++group) {
        signals.filled[which][group].init();
        signals.read[which][group].init(4);
      }
    }
  }

  /// Starts to copy the tokens from `first` on for pass `pass`: keys (0) or values (1).
  __device__ void start(int which, const CUtensorMap& map, int first, int kv_head, int pass) const {
    for (int group = 0; group < S::kGroups; ++group) {
      if (pass > 0) signals_.read[which][group].wait((pass - 1) & 1);
      Arrival& filled = signals_.filled[which][group];
      filled.expect(S::kTokenChunks * 16);
      uint4* target = place(which, group);
      for (int panel = 0; panel < S::kTokenChunks / kPanel; ++panel) {
        filled.start_panel(target + panel * kPanel, map, 64 * panel, first + group * kGroupTokens, kv_head);
      }
    }
  }
  /// This warp's 16 tokens of pass `pass`.
  template <class T, int Size>
  __device__ void take(int which, LeftRows<T, Size>& tokens, int pass) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    signals_.filled[which][warp / 4].wait(pass & 1);
    const uint4* chunks = place(which, warp / 4);
#pragma unroll
    for (int s = 0; s < Size / 16; ++s) {
      const int row = warp % 4 * kWarpTokens + lane % 16;
      const uint4 pieces = load_pieces(shared_address(chunks + HalfTiles<T, Size>::place(row, 2 * s + lane / 16)));
      tokens.steps[s][0] = pieces.x;
      tokens.steps[s][1] = pieces.y;
      tokens.steps[s][2] = pieces.z;
      tokens.steps[s][3] = pieces.w;
    }
    __syncwarp();
    if (lane == 0) signals_.read[which][warp / 4].arrive();
  }

 private:
  static constexpr int kPanel = kGroupTokens * 8;  ///< chunks
  __device__ uint4* place(int which, int group) const {
    return chunks_ + (which * S::kGroups + group) * S::kTokenChunks;
  }
  uint4* chunks_;
  Signals& signals_;
};

/// The forms of all pairs at a warp's 16 tokens, in shared memory of its own.
template <class S>
class WarpForms {
 public:
  __device__ explicit WarpForms(float* forms)
      : forms_(forms + static_cast<int>(threadIdx.x) / 32 * S::kPairs * kWarpTokens) {}
  /// Starts to copy them. forms: [kPairs, context].
  __device__ void start(const float* forms, int first, int context) const {
    for (int i = static_cast<int>(threadIdx.x) % 32; i < S::kPairs * kWarpTokens; i += 32) {
      const float* from =
          forms + static_cast<size_t>(i / kWarpTokens) * context + min(first + i % kWarpTokens, context - 1);
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(forms_ + i)), "l"(from));
    }
    asm volatile("cp.async.commit_group;");
  }
  __device__ void wait() const {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncwarp();
  }
  __device__ float operator()(int pair, int half) const { return forms_[pair * kWarpTokens + 8 * half + lane_row()]; }

 private:
  float* forms_;
};

}  // namespace laprox::cuda
