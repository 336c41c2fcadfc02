#include "waiting.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace laprox::cli {

namespace {

constexpr const char* kPolicy = "OMP_WAIT_POLICY";
constexpr const char* kSpins = "GOMP_SPINCOUNT";
constexpr const char* kFewSpins = "1000";  // some 30 us: threads that end together still meet awake

}  // namespace

void wait_without_spinning(char** argv) {
  if (std::getenv(kPolicy) || std::getenv(kSpins)) return;
  std::error_code unknown;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", unknown);
  if (unknown || setenv(kSpins, kFewSpins, 1) != 0) return;
  execv(program.c_str(), argv);  // where that fails, the work is done all the same
}

}  // namespace laprox::cli
