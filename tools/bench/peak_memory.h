#pragma once

#include <cmath>
#include <fstream>
#include <string>

namespace laprox::bench {

/// The process's resident memory, whose high-water mark is reset at construction.
class PeakMemory {
 public:
  PeakMemory() {
    std::ofstream("/proc/self/clear_refs") << 5;
    start_ = read("VmRSS:");
  }
  double above_start() const { return read("VmHWM:") - start_; }

 private:
  static double read(const std::string& name) {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;) {
      double kilobytes = 0;
      if (word == name && status >> kilobytes) return 1024 * kilobytes;
    }
    return std::nan("");
  }
  double start_ = 0;
};

}  // namespace laprox::bench
