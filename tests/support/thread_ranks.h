#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "laprox/ranks.h"

namespace laprox::testing {

/// Ranks that are threads of this process, for tests without MPI.
class ThreadRanks {
 public:
  explicit ThreadRanks(Index count) : count_(count), given_(static_cast<std::size_t>(count)) {}

  /// Calls body(rank) on every rank, and conclude behind it. Returns what each conclusion was: [rank].
  std::vector<std::optional<Failure>> run(const std::function<void(Ranks&)>& body);

 private:
  class Rank;
  /// What every rank has given, once all have.
  std::vector<std::string> exchange(Index rank, std::string mine, int status);

  Index count_, arrived_ = 0;
  std::size_t round_ = 0;
  std::vector<std::string> given_, complete_;
  std::optional<Failure> failed_, failure_;  ///< so far in this exchange; known to all
  std::mutex mutex_;
  std::condition_variable all_here_;
};

}  // namespace laprox::testing
