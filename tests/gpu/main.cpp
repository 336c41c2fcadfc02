#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "laprox/cuda.h"
#include "laprox/error.h"
#include "support/layers.h"

namespace laprox::testing {

std::vector<std::unique_ptr<Backend>> backends() {
  std::vector<std::unique_ptr<Backend>> both;
  both.push_back(make_reference_backend());
  both.push_back(make_cuda_backend(0, 2));
  return both;
}

}  // namespace laprox::testing

/// Skips everything, with the exit code that ctest reads so, where there is no device.
int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  try {
    std::printf("running on %s\n", laprox::make_cuda_backend()->device().c_str());
  } catch (const laprox::BackendError& error) {
    const char* required = std::getenv("LAPROX_REQUIRE_GPU");
    const bool fails = required != nullptr && std::string_view(required) == "1";
    std::printf("%s: %s\n", fails ? "LAPROX_REQUIRE_GPU=1, but" : "skipped", error.what());
    return fails ? 1 : kSkipped;
  }
  return doctest::Context(argc, argv).run();
}
