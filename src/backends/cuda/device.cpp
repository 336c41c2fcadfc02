#include "backends/cuda/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "laprox/error.h"

namespace laprox::cuda {

namespace {

std::atomic<bool> sm90_allowed = true;
thread_local cudaStream_t pool_order = nullptr;

/// Lets a device's pool keep some of what is given back to it, for the next layer.
void keep_pool_memory(int device) {
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for the device's memory");
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, device), "asking for the device's memory pool");
  std::uint64_t kept = total / 64;
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), "setting up the device's memory pool");
}

const char* advice(cudaError_t status) {
  switch (status) {
    case cudaErrorNoDevice:
      return "no NVIDIA GPU is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --backend cpu";
    case cudaErrorInsufficientDriver:
      return "there is no NVIDIA driver, or one older than the CUDA runtime; install or update it, or use --backend "
             "cpu";
    case cudaErrorNoKernelImageForDevice:
      return "the library was not compiled for this GPU; configure with -DCMAKE_CUDA_ARCHITECTURES=native";
    case cudaErrorInvalidDevice:
      return "there is no GPU of that number; nvidia-smi lists those that there are";
    case cudaErrorMemoryAllocation:
      return "out of memory; use fewer policies at a time, or --backend cpu";
    default:
      return "--backend cpu does without the GPU";
  }
}

[[noreturn]] void out_of_memory(std::size_t bytes, const char* where) {
  cudaGetLastError();  // so that the next check does not see this failure again
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  throw BackendError(fmt::format(
      "CUDA: {} has no {:.2f} GB left ({:.2f} of {:.2f} GB of the GPU are free); use fewer policies at a time, or "
      "--backend cpu",
      where, static_cast<double>(bytes) / 1e9, static_cast<double>(free) / 1e9, static_cast<double>(total) / 1e9));
}

}  // namespace

void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw BackendError(fmt::format("CUDA: {} ({}) while {}; {}", cudaGetErrorString(status), cudaGetErrorName(status),
                                 doing, advice(status)));
}

void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

const DeviceLimits& device_limits() {
  static const DeviceLimits limits = [] {
    int device = 0;
    check(cudaGetDevice(&device), "asking for the device");
    DeviceLimits found;
    const auto read = [device](int& value, cudaDeviceAttr attribute) {
      check(cudaDeviceGetAttribute(&value, attribute, device), "reading the device's limits");
    };
    read(found.multiprocessors, cudaDevAttrMultiProcessorCount);
    read(found.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    read(found.shared_bytes_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    int major = 0, minor = 0;
    read(major, cudaDevAttrComputeCapabilityMajor);
    read(minor, cudaDevAttrComputeCapabilityMinor);
    found.sm90 = major == 9 && minor == 0;
    return found;
  }();
  return limits;
}

bool runs_sm90() { return sm90_allowed && device_limits().sm90; }

void allow_sm90(bool allowed) { sm90_allowed = allowed; }

int fitting_in_shared_memory(int bytes, int wanted, int other_bytes) {
  const int available = device_limits().shared_bytes_per_block;
  if (available >= bytes + other_bytes) return std::min(wanted, (available - other_bytes) / bytes);
  throw BackendError(
      fmt::format("CUDA: heads this large need {} KiB of shared memory per block, and this GPU has {} KiB; use "
                  "--backend cpu",
                  (bytes + other_bytes) / 1024, available / 1024));
}

std::string describe_device(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "reading the device's properties");
  return fmt::format("{}, sm_{}{}, {:.0f} GB", properties.name, properties.major, properties.minor,
                     static_cast<double>(properties.totalGlobalMem) / 1e9);
}

UseDevice::UseDevice(int device) {
  if (cudaGetDevice(&before_) != cudaSuccess) cudaGetLastError();
  check(cudaSetDevice(device), "choosing the GPU");
}

UseDevice::~UseDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

UsePool::UsePool(cudaStream_t stream) : before_(pool_order) {
  thread_local int device_with_pool = -1;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the device");
  if (device != device_with_pool) keep_pool_memory(device);
  device_with_pool = device;
  pool_order = stream;
}

UsePool::~UsePool() { pool_order = before_; }

cudaStream_t pool_stream() { return pool_order; }

void release_device(void* memory, cudaStream_t pool) {
  if (pool) {
    cudaFreeAsync(memory, pool);
  } else {
    cudaFree(memory);
  }
}

void* allocate_device(std::size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = pool_order ? cudaMallocAsync(&memory, bytes, pool_order) : cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) out_of_memory(bytes, "the GPU");
  check(status, "taking device memory");
  return memory;
}

void* allocate_pinned(std::size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMallocHost(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) out_of_memory(bytes, "pinned host memory");
  check(status, "taking pinned host memory");
  return memory;
}

namespace {

/// Pieces that nobody has borrowed. They stay until the process ends, when the driver has gone before it could be
/// asked.
struct PinnedStore {
  std::mutex mutex;
  std::vector<std::byte*> free;
};

PinnedStore& pinned_store() {
  static auto* store = new PinnedStore;
  return *store;
}

}  // namespace

PinnedPiece::PinnedPiece() : memory_(nullptr) {
  PinnedStore& store = pinned_store();
  {
    const std::scoped_lock lock(store.mutex);
    if (!store.free.empty()) {
      memory_ = store.free.back();
      store.free.pop_back();
    }
  }
  if (memory_ == nullptr) memory_ = static_cast<std::byte*>(allocate_pinned(kBytes));
}

PinnedPiece::~PinnedPiece() {
  PinnedStore& store = pinned_store();
  const std::scoped_lock lock(store.mutex);
  store.free.push_back(memory_);
}

}  // namespace laprox::cuda
