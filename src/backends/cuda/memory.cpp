#include "backends/cuda/memory.h"

#include <fmt/format.h>

#include <mutex>

#include "laprox/cuda.h"
#include "laprox/error.h"

namespace laprox {

namespace {

int current_device() {
  int device = 0;
  cuda::check(cudaGetDevice(&device), "asking for the device");
  return device;
}

/// The memory of one device, as it is once the work that was queued on a stream has run.
class CudaMemory : public DeviceMemory {
 public:
  /// `device` is the one that the calling thread has chosen.
  CudaMemory(int device, cudaStream_t stream) : device_(device) { ready_.record(stream); }

  int device() const { return device_; }
  void join(cudaStream_t stream) const { ready_.hold(stream); }
  std::string name() const override { return fmt::format("cuda:{}", device_); }

  void download(const StridedArray& source, std::byte* target) const override {
    const Working working(*this);
    const std::byte* from = source.data;
    const auto bytes = static_cast<std::size_t>(source.size() * size_of(source.type));
    cuda::DeviceBuffer<std::byte> packed;
    if (!source.is_dense()) {
      packed = cuda::DeviceBuffer<std::byte>(bytes);
      cuda::pack_rows(source, source.shape.back(), packed.data(), stream_);
      from = packed.data();
    }
    cuda::download(target, from, bytes, stream_);
  }

  std::optional<Index> first_non_finite(const StridedArray& source) const override {
    const Working working(*this);
    cuda::DeviceBuffer<unsigned long long> smallest(1);
    cuda::find_non_finite(source, smallest.data(), stream_);
    unsigned long long found = 0;
    cuda::download(&found, smallest.data(), 1, stream_);
    if (found >= static_cast<unsigned long long>(source.size())) return std::nullopt;
    return static_cast<Index>(found);
  }

 private:
  /// What one thread at a time holds while it works on stream_.
  struct Working {
    explicit Working(const CudaMemory& memory) : lock(memory.mutex_), device(memory.device_), pool(memory.stream_) {
      memory.ready_.hold(memory.stream_);
    }
    std::scoped_lock<std::mutex> lock;
    cuda::UseDevice device;
    cuda::UsePool pool;
  };

  int device_;
  cuda::Stream stream_;
  cuda::Event ready_;
  mutable std::mutex mutex_;
};

}  // namespace

std::shared_ptr<const DeviceMemory> make_cuda_memory(int device, void* stream) {
  const cuda::UseDevice use(device);
  return std::make_shared<const CudaMemory>(device, static_cast<cudaStream_t>(stream));
}

namespace cuda {

void join(const DeviceMemory& memory, cudaStream_t stream) {
  const auto* cuda_memory = dynamic_cast<const CudaMemory*>(&memory);
  if (cuda_memory == nullptr || cuda_memory->device() != current_device()) {
    throw UsageError(
        fmt::format("the tensors lie in the memory of {}, and the CUDA backend runs on cuda:{}; make it for "
                    "that device",
                    memory.name(), current_device()));
  }
  cuda_memory->join(stream);
}

}  // namespace cuda

}  // namespace laprox
