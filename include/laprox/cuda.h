#pragma once

#include <memory>

#include "laprox/backend.h"

namespace laprox {

/// How many NVIDIA GPUs this process sees. Throws BackendError where there is no driver.
int cuda_devices();

/// Tensor cores with float32 accumulation, on an NVIDIA GPU of compute capability 8.0 or higher. Layers stream to the
/// device one at a time. Part of the library laprox::cuda, which is built with the option LAPROX_CUDA. threads: of the
/// CPU, for what scorers do there; 0: all. Throws BackendError where there is no such GPU.
std::unique_ptr<Backend> make_cuda_backend(int device = 0, int threads = 0);

/// The memory of a CUDA device for tensors that a program has there (Tensor::borrow, ArrayView). Reading it waits, on
/// the device, for the work that `stream` (a cudaStream_t; nullptr: the default stream) was given before this call.
/// float16, bfloat16 and float32 tensors whose rows the kernels can read are used where they lie; others are packed by
/// one copy on the device. Throws BackendError where there is no such device.
std::shared_ptr<const DeviceMemory> make_cuda_memory(int device, void* stream);

}  // namespace laprox
