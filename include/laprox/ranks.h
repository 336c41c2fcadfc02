#pragma once

#include <optional>
#include <string>
#include <vector>

#include "laprox/error.h"
#include "laprox/tensor.h"

namespace laprox {

/// The rank that failed first in their order, and the exit status that it gave.
struct Failure {
  Index rank = 0;
  int status = 0;
};

/// Another rank has failed, so that this one cannot go on; that one says why.
class RankFailed : public Error {
 public:
  explicit RankFailed(const Failure& which) : Error("another rank has failed"), failure(which) {}
  Failure failure;
};

/// Processes that work on one sweep together, each known by its rank. All of them make the same calls of all_gather and
/// gather in the same order, and every one calls `conclude` in the end, early where it cannot go on: that takes the
/// place of whatever the others call next, which then throws RankFailed.
class Ranks {
 public:
  virtual ~Ranks() = default;

  virtual Index rank() const = 0;
  virtual Index size() const = 0;
  /// This rank's number among those on the same machine, from 0: which of its GPUs to take.
  virtual Index rank_on_machine() const = 0;
  /// The first rank is the one that prints and writes.
  bool is_first() const { return rank() == 0; }

  /// [rank]: what every rank gives, on every rank. Throws RankFailed.
  virtual std::vector<std::string> all_gather(const std::string& bytes) = 0;
  /// The same on the first rank; nothing on the others. Throws RankFailed.
  virtual std::vector<std::string> gather(const std::string& bytes) = 0;
  /// Throws RankFailed where another rank is known to have failed already. Costs next to nothing: for between layers.
  virtual void look_out() = 0;
  /// Ends the work of this rank; status: 0 where all went well. Waits for the others, and returns the first failure
  /// among all ranks, or nothing.
  virtual std::optional<Failure> conclude(int status) = 0;
};

/// This process alone: the only rank of one.
class SingleRank : public Ranks {
 public:
  Index rank() const override { return 0; }
  Index size() const override { return 1; }
  Index rank_on_machine() const override { return 0; }
  std::vector<std::string> all_gather(const std::string& bytes) override { return {bytes}; }
  std::vector<std::string> gather(const std::string& bytes) override { return {bytes}; }
  void look_out() override {}
  std::optional<Failure> conclude(int status) override {
    return status == 0 ? std::nullopt : std::optional(Failure{0, status});
  }
};

/// Serves whoever works alone.
Ranks& single_rank();

}  // namespace laprox
