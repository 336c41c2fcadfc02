#include "laprox/backend.h"

#include "laprox/error.h"

namespace laprox {

std::string_view to_string(SoftmaxMode mode) {
  return mode == SoftmaxMode::renormalized ? "renormalized" : "truncated";
}

std::vector<Lifetimes> Backend::accumulate(const LayerTensors&, const Accumulation&) const {
  throw Bug("a backend that does not replay decoding was asked to");
}

}  // namespace laprox
