#include <fmt/format.h>

#include "backends/cpu/accumulation.h"
#include "backends/cpu/errors.h"
#include "backends/cpu/lanes.h"
#include "backends/cpu/scoring.h"
#include "base/parallel.h"
#include "laprox/error.h"

namespace laprox {

namespace {

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int threads) : threads_(threads) {}

  std::string_view name() const override { return "cpu"; }
  std::string device() const override {
    return fmt::format("CPU, float32, {} lanes, {} thread{}", cpu::kLanes, threads_, threads_ == 1 ? "" : "s");
  }
  ElementType element_type() const override { return ElementType::float32; }
  int threads() const override { return threads_; }
  std::unique_ptr<ScoringKernels> scoring(const LayerTensors& layer) const override {
    return std::make_unique<cpu::Scoring>(layer, threads_);
  }
  LayerErrors layer_errors(const LayerTensors& layer, const std::vector<LayerKeep>& policies,
                           SoftmaxMode mode) const override {
    return cpu::layer_errors(layer, policies, mode, threads_);
  }
  bool replays_decoding() const override { return true; }
  std::vector<Lifetimes> accumulate(const LayerTensors& layer, const Accumulation& start) const override {
    return cpu::accumulate(layer, start, threads_);
  }

 private:
  int threads_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  if (threads < 0) throw UsageError(fmt::format("threads: expected 0 (all) or more, found {}", threads));
  return std::make_unique<CpuBackend>(thread_count(threads));
}

}  // namespace laprox
