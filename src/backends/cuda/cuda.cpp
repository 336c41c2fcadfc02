#include "laprox/cuda.h"

#include <fmt/format.h>

#include "backends/cuda/errors.h"
#include "backends/cuda/scoring.h"
#include "base/parallel.h"
#include "laprox/error.h"

namespace laprox {

namespace {

class CudaBackend : public Backend {
 public:
  CudaBackend(int device, int threads) : device_(device), threads_(threads), name_(cuda::describe_device(device)) {}

  std::string_view name() const override { return "cuda"; }
  std::string device() const override { return name_; }
  ElementType element_type() const override { return ElementType::float32; }
  bool takes_half_types() const override { return true; }
  int threads() const override { return threads_; }
  std::unique_ptr<ScoringKernels> scoring(const LayerTensors& layer) const override {
    const cuda::UseDevice use(device_);
    return std::make_unique<cuda::Scoring>(layer, device_, threads_);
  }
  LayerErrors layer_errors(const LayerTensors& layer, const std::vector<LayerKeep>& policies,
                           SoftmaxMode mode) const override {
    const cuda::UseDevice use(device_);
    return cuda::layer_errors(layer, policies, mode, threads_);
  }

 private:
  int device_, threads_;
  std::string name_;
};

}  // namespace

int cuda_devices() {
  int devices = 0;
  cuda::check(cudaGetDeviceCount(&devices), "looking for GPUs");
  return devices;
}

std::unique_ptr<Backend> make_cuda_backend(int device, int threads) {
  if (threads < 0) throw UsageError(fmt::format("threads: expected 0 (all) or more, found {}", threads));
  const int devices = cuda_devices();
  if (device < 0 || device >= devices) {
    throw BackendError(fmt::format("CUDA: there is no GPU {}; this machine has {}, counted from 0", device, devices));
  }
  const cuda::UseDevice use(device);
  return std::make_unique<CudaBackend>(device, thread_count(threads));
}

}  // namespace laprox
