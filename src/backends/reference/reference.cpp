#include "backends/reference/accumulation.h"
#include "backends/reference/errors.h"
#include "backends/reference/scoring.h"

namespace laprox {

namespace {

class ReferenceBackend : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::string device() const override { return "CPU, float64, 1 thread"; }
  ElementType element_type() const override { return ElementType::float64; }
  int threads() const override { return 1; }
  std::unique_ptr<ScoringKernels> scoring(const LayerTensors& layer) const override {
    return std::make_unique<reference::Scoring>(layer);
  }
  LayerErrors layer_errors(const LayerTensors& layer, const std::vector<LayerKeep>& policies,
                           SoftmaxMode mode) const override {
    const reference::LayerReplay replayed(layer);
    LayerErrors result{replayed.exact_output(), {}};
    for (const LayerKeep& keep : policies) result.errors.push_back(replayed.output_errors(keep, mode));
    return result;
  }
  bool replays_decoding() const override { return true; }
  std::vector<Lifetimes> accumulate(const LayerTensors& layer, const Accumulation& start) const override {
    return reference::accumulate(layer, start);
  }
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace laprox
