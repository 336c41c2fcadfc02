#pragma once

#include <vector>

#include "backends/cuda/device.h"

namespace laprox {
struct LayerTensors;
}

namespace laprox::cuda {

enum class Element : unsigned char { float16, bfloat16, float32 };

/// One layer in device memory, as kernels see it. Rows are padded with zeros so that every one begins on a 16-byte
/// boundary and has a length that kernels are compiled for.
struct Layer {
  Element element{};
  int query_heads = 0, kv_heads = 0, group = 0;
  int queries = 0;  ///< N stored
  int tokens = 0;   ///< T
  int context = 0;  ///< C
  int value_size = 0, model_size = 0;
  int head_stride = 0, value_stride = 0;  ///< 64, 128 or 256: d and d_v with their padding
  int model_stride = 0;                   ///< D with its padding, a multiple of 32
  const void* q = nullptr;                ///< [H_q, N, head_stride]
  const void* k = nullptr;                ///< [H_kv, T, head_stride]
  const void* v = nullptr;                ///< [H_kv, T, value_stride]
  const void* w_o = nullptr;              ///< [H_q * value_size, model_stride]
  const int* positions = nullptr;         ///< [N]
  const float* sinks = nullptr;           ///< nullptr, or [H_q]
  float scale = 1, softcap = 0;
  int sliding_window = 0;  ///< 0: none; else at most T
};

/// Owns a layer's device memory, but for tensors that are used where they lie.
class DeviceLayer {
 public:
  /// Copies the layer through two pinned buffers, one being filled while the other one travels; tensors that lie on the
  /// device are used there, or packed by one copy on it where their rows are not laid out as Layer's. `layer` is of
  /// float16, bfloat16 or float32 and outlives this. Throws BackendError where the device has too little memory, the
  /// head sizes are too large, or a tensor is on another device.
  DeviceLayer(const LayerTensors& layer, int threads, cudaStream_t stream);
  const Layer& view() const { return view_; }

 private:
  DeviceBuffer<std::byte> q_, k_, v_, w_o_;
  DeviceBuffer<int> positions_;
  DeviceBuffer<float> sinks_;
  Layer view_;
};

/// The smallest row length that kernels are compiled for and that holds `size` elements: 64, 128 or 256, or 0 if none.
int padded_size(int size);

}  // namespace laprox::cuda
