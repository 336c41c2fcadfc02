#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "output.h"

namespace laprox::cli {

ProgressBar::ProgressBar(Index total, bool quiet)
    : total_(total), quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0), started_(Clock::now()), shown_(started_) {}

ProgressBar::~ProgressBar() {
  if (terminal_ && width_ > 0) std::fputs(fmt::format("\r{:{}}\r", "", width_).c_str(), stderr);
}

void ProgressBar::at(Index done, const std::string& what) {
  done_ = done;
  const auto interval = terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(5000);
  if (quiet_ || Clock::now() - shown_ < interval) return;
  shown_ = Clock::now();
  draw(what);
}

void ProgressBar::draw(const std::string& what) {
  constexpr Index kCells = 30;
  const double share = static_cast<double>(done_) / static_cast<double>(total_);
  const double elapsed = std::chrono::duration<double>(shown_ - started_).count();
  const std::string left = fmt::format("{:3.0f}%  {:.0f} s left  {}", 100 * share, elapsed * (1 - share) / share, what);
  if (!terminal_) {
    note("laprox: " + left);
    return;
  }
  const auto filled = static_cast<std::size_t>(share * static_cast<double>(kCells));
  const std::string line = fmt::format("[{:<{}}] {}", std::string(filled, '#'), kCells, left);
  std::fputs(fmt::format("\r{:<{}}", line, width_).c_str(), stderr);
  width_ = std::max(width_, line.size());
}

}  // namespace laprox::cli
