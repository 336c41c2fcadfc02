#pragma once

#include <vector>

#include "base/bytes.h"
#include "laprox/ranks.h"

namespace laprox {

/// The lists of all ranks one behind the other, on every rank.
template <class T>
std::vector<T> joined_over_ranks(Ranks& ranks, const std::vector<T>& mine) {
  ByteWriter writer;
  writer.put(mine);
  std::vector<T> all;
  for (const std::string& bytes : ranks.all_gather(writer.bytes())) {
    const auto theirs = ByteReader(bytes).get<std::vector<T>>();
    all.insert(all.end(), theirs.begin(), theirs.end());
  }
  return all;
}

/// The sum over ranks of each number of a list that is equally long on all of them. Integers, whose sums do not depend
/// on their order.
template <class T>
std::vector<T> sums_over_ranks(Ranks& ranks, const std::vector<T>& mine) {
  static_assert(std::is_integral_v<T>);
  if (ranks.size() == 1) return mine;
  const std::vector<T> all = joined_over_ranks(ranks, mine);
  require(all.size() == mine.size() * static_cast<std::size_t>(ranks.size()), "all ranks give equally many numbers");
  std::vector<T> sums(mine.size(), 0);
  for (std::size_t i = 0; i < all.size(); ++i) sums[i % sums.size()] += all[i];
  return sums;
}

/// A turn of this rank among `count` things that ranks take in turn, and what all made of theirs: [thing].
class Turns {
 public:
  Turns(std::size_t count, const Ranks& ranks) : count_(count), ranks_(static_cast<std::size_t>(ranks.size())) {}

  std::vector<std::size_t> of(Index rank) const {
    std::vector<std::size_t> things;
    for (auto n = static_cast<std::size_t>(rank); n < count_; n += ranks_) things.push_back(n);
    return things;
  }
  /// of_ranks: each one's texts, written by a ByteWriter. Nothing where `of_ranks` is empty.
  std::vector<std::string> ordered(const std::vector<std::string>& of_ranks) const {
    std::vector<std::string> texts(of_ranks.empty() ? 0 : count_);
    for (std::size_t rank = 0; rank < of_ranks.size(); ++rank) {
      const auto theirs = ByteReader(of_ranks[rank]).get<std::vector<std::string>>();
      const std::vector<std::size_t> things = of(static_cast<Index>(rank));
      for (std::size_t i = 0; i < things.size(); ++i) texts[things[i]] = theirs.at(i);
    }
    return texts;
  }

 private:
  std::size_t count_, ranks_;
};

}  // namespace laprox
