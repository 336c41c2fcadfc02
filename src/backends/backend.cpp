#include "laprox/backend.h"

namespace laprox {

std::string_view to_string(SoftmaxMode mode) {
  return mode == SoftmaxMode::renormalized ? "renormalized" : "truncated";
}

}  // namespace laprox
