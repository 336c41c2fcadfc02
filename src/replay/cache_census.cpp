#include "replay/cache_census.h"

#include <algorithm>

#include "base/scatter.h"

namespace laprox {

void CacheCensus::add(const Lifetimes& gone, Index sliding_window, std::uint64_t place) {
  const Index tokens = static_cast<Index>(gone.size());
  std::uint64_t print = place;
  std::vector<Index> change(static_cast<std::size_t>(tokens - context_) + 1, 0);
  for (Index token = 0; token < tokens; ++token) {
    const Index begin = std::max(token, context_), end = std::min<Index>(gone[token], tokens);
    print = scatter(print ^ static_cast<std::uint64_t>(end));
    if (end <= begin) continue;
    ++change[begin - context_];
    --change[end - context_];
    const bool aged = sliding_window > 0 && end == token + sliding_window;
    if (end == tokens || aged) continue;
    ++evictions_;
    cuts_[end - context_] = 1;
  }
  print_ += print;  // a sum, which does not depend on the order
  Index held = 0;
  for (Index step = 0; step < tokens - context_; ++step) {
    held += change[step];
    peak_ = std::max(peak_, held);
    entries_ += held;
  }
  ++heads_;
}

void CacheCensus::add(const CacheCensus& other) {
  for (std::size_t step = 0; step < cuts_.size(); ++step) cuts_[step] |= other.cuts_[step];
  peak_ = std::max(peak_, other.peak_);
  heads_ += other.heads_;
  evictions_ += other.evictions_;
  entries_ += other.entries_;
  print_ += other.print_;
}

void CacheCensus::write(ByteWriter& writer) const {
  writer.put(cuts_);
  for (const Index number : {peak_, heads_, evictions_, entries_}) writer.put(number);
  writer.put(print_);
}

void CacheCensus::read(ByteReader& reader) {
  reader.get(cuts_);
  for (Index* number : {&peak_, &heads_, &evictions_, &entries_}) reader.get(*number);
  reader.get(print_);
}

CacheFigures CacheCensus::figures() const {
  const double rows = static_cast<double>(heads_) * static_cast<double>(cuts_.size());
  return {peak_, static_cast<double>(entries_) / rows, std::count(cuts_.begin(), cuts_.end(), 1), evictions_};
}

}  // namespace laprox
