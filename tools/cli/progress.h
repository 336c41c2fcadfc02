#pragma once

#include <chrono>
#include <string>

#include "laprox/sweep.h"

namespace laprox::cli {

/// Shows long work on stderr: one bar that redraws itself on a terminal, a plain line every few seconds elsewhere.
class ProgressBar {
 public:
  /// `total` steps in all. Quiet work shows nothing.
  ProgressBar(Index total, bool quiet);
  ~ProgressBar();

  void step(const std::string& what) { at(done_ + 1, what); }
  /// So many steps are done.
  void at(Index done, const std::string& what);

 private:
  using Clock = std::chrono::steady_clock;
  void draw(const std::string& what);

  Index done_ = 0, total_;
  bool quiet_, terminal_;
  std::size_t width_ = 0;
  Clock::time_point started_, shown_;
};

}  // namespace laprox::cli
