#pragma once

#include <memory>

#include "laprox/backend.h"

namespace laprox {

/// Tensor cores with float32 accumulation, on an NVIDIA GPU of compute capability 8.0 or higher. Layers stream to the
/// device one at a time. Part of the library laprox::cuda, which is built with the option LAPROX_CUDA. threads: of the
/// CPU, for what scorers do there; 0: all. Throws BackendError where there is no such GPU.
std::unique_ptr<Backend> make_cuda_backend(int device = 0, int threads = 0);

}  // namespace laprox
