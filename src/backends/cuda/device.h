#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <utility>

namespace laprox::cuda {

/// Throws BackendError, saying what was being done and what to do about it, unless `status` is success.
void check(cudaError_t status, const char* doing);
/// Checks the kernel launch just made.
void check_launch(const char* kernel);

/// What launch configurations are derived from.
struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes_per_block = 0;           ///< with the opt-in that large blocks need
  int shared_bytes_per_multiprocessor = 0;  ///< for all blocks that are resident at once
  bool sm90 = false;                        ///< compute capability 9.0: what is compiled for sm_90a runs
};
/// Of the calling thread's current device; read once.
const DeviceLimits& device_limits();
/// Whether kernels compiled for sm_90a are to be used.
bool runs_sm90();
/// Lets tests switch them off, so that the other kernels are seen on such a device too.
void allow_sm90(bool allowed);
/// How many of `wanted` pieces of `bytes` fit a block's shared memory beside `other_bytes`. Throws BackendError where
/// none does.
int fitting_in_shared_memory(int bytes, int wanted, int other_bytes);
/// Name, compute capability and memory of a device.
std::string describe_device(int device);

/// Lets `kernel` have `shared_bytes` of dynamic shared memory.
template <class Kernel>
void allow_shared_memory(Kernel* kernel, int shared_bytes) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             shared_bytes),
        "setting a kernel's shared memory");
}

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "waiting for the device"); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  explicit Event(unsigned flags = cudaEventDisableTiming) {
    check(cudaEventCreateWithFlags(&event_, flags), "creating an event");
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }
  void record(cudaStream_t stream) const { check(cudaEventRecord(event_, stream), "recording an event"); }
  void hold(cudaStream_t stream) const { check(cudaStreamWaitEvent(stream, event_, 0), "joining two streams"); }
  void wait() const { check(cudaEventSynchronize(event_), "waiting for the device"); }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Takes device memory, or pinned host memory, and says so kindly where there is none left.
void* allocate_device(std::size_t bytes);
void* allocate_pinned(std::size_t bytes);

/// Pinned host memory that the process keeps and lends out again: taking it from the driver and giving it back costs
/// milliseconds each time.
class PinnedPiece {
 public:
  static constexpr std::size_t kBytes = std::size_t{16} << 20;
  PinnedPiece();
  ~PinnedPiece();
  PinnedPiece(const PinnedPiece&) = delete;
  PinnedPiece& operator=(const PinnedPiece&) = delete;
  std::byte* data() { return memory_; }

 private:
  std::byte* memory_;
};

/// Inside, the calling thread's current device is this one; afterwards it is what it was. Throws BackendError.
class UseDevice {
 public:
  explicit UseDevice(int device);
  ~UseDevice();
  UseDevice(const UseDevice&) = delete;
  UseDevice& operator=(const UseDevice&) = delete;

 private:
  int before_ = -1;
};

/// Inside, memory that this thread takes comes from the device's pool in the order of `stream`, on which all work on it
/// must be: that neither waits for the device nor asks the driver for pages. The stream must outlive the memory.
class UsePool {
 public:
  explicit UsePool(cudaStream_t stream);
  ~UsePool();
  UsePool(const UsePool&) = delete;
  UsePool& operator=(const UsePool&) = delete;

 private:
  cudaStream_t before_;
};
/// Where the calling thread takes device memory: the stream of the innermost UsePool, or nullptr.
cudaStream_t pool_stream();
/// Gives back what allocate_device gave where pool_stream() was `pool`.
void release_device(void* memory, cudaStream_t pool);

/// `size` uninitialised elements in device memory.
template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t size) : size_(size), pool_(pool_stream()) {
    if (size > 0) memory_ = static_cast<T*>(allocate_device(size * sizeof(T)));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : size_(std::exchange(other.size_, 0)), memory_(std::exchange(other.memory_, nullptr)), pool_(other.pool_) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(size_, other.size_);
    std::swap(memory_, other.memory_);
    std::swap(pool_, other.pool_);
    return *this;
  }
  ~DeviceBuffer() {
    if (memory_) release_device(memory_, pool_);
  }

  /// Memory for at least `size` elements, whose old contents may be lost.
  T* at_least(std::size_t size) {
    if (size > size_) {
      *this = DeviceBuffer();  // the old memory goes first: both might not fit
      *this = DeviceBuffer(size);
    }
    return memory_;
  }
  std::size_t size() const { return size_; }
  T* data() { return memory_; }
  const T* data() const { return memory_; }

 private:
  std::size_t size_ = 0;
  T* memory_ = nullptr;
  cudaStream_t pool_ = nullptr;
};

/// Copies `count` elements to the device, ordered on `stream`; the source may be reused when the call returns.
template <class T>
void upload(T* target, const T* source, std::size_t count, cudaStream_t stream) {
  if (count == 0) return;
  check(cudaMemcpyAsync(target, source, count * sizeof(T), cudaMemcpyHostToDevice, stream), "copying to the device");
}

/// Copies `count` elements to the host and waits for them.
template <class T>
void download(T* target, const T* source, std::size_t count, cudaStream_t stream) {
  if (count == 0) return;
  check(cudaMemcpyAsync(target, source, count * sizeof(T), cudaMemcpyDeviceToHost, stream), "copying from the device");
  check(cudaStreamSynchronize(stream), "waiting for the device");
}

}  // namespace laprox::cuda
