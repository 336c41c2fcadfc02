#include "support/layers.h"

namespace laprox::testing {

std::vector<std::unique_ptr<Backend>> backends() {
  std::vector<std::unique_ptr<Backend>> both;
  both.push_back(make_reference_backend());
  both.push_back(make_cpu_backend(2));
  return both;
}

}  // namespace laprox::testing
