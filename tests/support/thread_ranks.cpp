#include "support/thread_ranks.h"

#include <exception>
#include <thread>

namespace laprox::testing {

class ThreadRanks::Rank : public Ranks {
 public:
  Rank(ThreadRanks& all, Index rank) : all_(all), rank_(rank) {}
  Index rank() const override { return rank_; }
  Index size() const override { return all_.count_; }
  Index rank_on_machine() const override { return rank(); }
  std::vector<std::string> all_gather(const std::string& bytes) override { return all_.exchange(rank_, bytes, 0); }
  std::vector<std::string> gather(const std::string& bytes) override {
    auto all = all_gather(bytes);
    return is_first() ? all : std::vector<std::string>();
  }
  void look_out() override {}
  std::optional<Failure> conclude(int status) override {
    try {
      if (!all_.failure_) all_.exchange(rank_, {}, status);
    } catch (const RankFailed&) {
    }
    return all_.failure_;
  }

 private:
  ThreadRanks& all_;
  Index rank_;
};

std::vector<std::string> ThreadRanks::exchange(Index rank, std::string mine, int status) {
  std::unique_lock lock(mutex_);
  const std::size_t round = round_;
  given_[static_cast<std::size_t>(rank)] = std::move(mine);
  if (status != 0 && (!failed_ || rank < failed_->rank)) failed_ = Failure{rank, status};
  if (++arrived_ == count_) {
    arrived_ = 0;
    ++round_;
    complete_ = given_;
    failure_ = failed_;
    all_here_.notify_all();
  } else {
    all_here_.wait(lock, [&] { return round_ != round; });
  }
  // Nobody overwrites what is complete before everyone has come to the next exchange, and so has taken this.
  if (failure_) throw RankFailed(*failure_);
  return complete_;
}

std::vector<std::optional<Failure>> ThreadRanks::run(const std::function<void(Ranks&)>& body) {
  std::vector<std::optional<Failure>> endings(static_cast<std::size_t>(count_));
  std::vector<std::thread> threads;
  for (Index r = 0; r < count_; ++r) {
    threads.emplace_back([&, r] {
      Rank rank(*this, r);
      int status = 0;
      try {
        body(rank);
      } catch (const std::exception&) {
        status = 1 + static_cast<int>(r);
      }
      endings[static_cast<std::size_t>(r)] = rank.conclude(status);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return endings;
}

}  // namespace laprox::testing
