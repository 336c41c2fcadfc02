#pragma once

#include "backends/cuda/device.h"
#include "laprox/tensor.h"

namespace laprox::cuda {

/// Lets `stream`, of the calling thread's current device, wait for what fills `memory`. Throws UsageError where that is
/// not the memory of this device.
void join(const DeviceMemory& memory, cudaStream_t stream);

/// pack.cu: the rows of an array on the device one behind another, each followed by zeros up to `stride` elements.
void pack_rows(const StridedArray& array, Index stride, std::byte* target, cudaStream_t stream);
/// The smallest number, in row-major order, of an element that is NaN or infinite, or the largest value there is.
void find_non_finite(const StridedArray& array, unsigned long long* smallest, cudaStream_t stream);

}  // namespace laprox::cuda
