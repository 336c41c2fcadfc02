#include "policy/descending.h"

#include <algorithm>
#include <array>
#include <bit>
#include <vector>

namespace laprox {

namespace {

/// Below this a comparison sort is as fast.
constexpr std::size_t kFew = 2048;
constexpr int kDigitBits = 11, kDigits = 6;  // 66 bits cover a double
constexpr std::uint64_t kDigitMask = (1U << kDigitBits) - 1;

struct Entry {
  std::uint64_t key;  ///< ascends where the score descends
  std::int32_t token;
};

std::uint64_t descending_key(double score) {
  // Of two positive doubles the larger one has the larger bits, of two negative ones the smaller. 0 + -0 is 0.
  const auto bits = std::bit_cast<std::uint64_t>(score + 0.0);
  return bits >> 63 ? bits : ~bits & ~(std::uint64_t{1} << 63);
}

std::size_t digit(std::uint64_t key, int place) { return key >> (place * kDigitBits) & kDigitMask; }

using Histogram = std::array<std::uint32_t, kDigitMask + 1>;

/// Moves entries to where their digits belong. A digit that all entries share moves nothing.
void sort_by_digit(std::vector<Entry>& entries, std::vector<Entry>& moved, Histogram& counts, int place) {
  if (counts[digit(entries[0].key, place)] == entries.size()) return;
  std::uint32_t before = 0;
  for (std::uint32_t& count : counts) {
    const std::uint32_t here = count;
    count = before;
    before += here;
  }
  for (const Entry& entry : entries) moved[counts[digit(entry.key, place)]++] = entry;
  entries.swap(moved);
}

/// A radix sort from the least significant digit on.
void radix_sort(std::span<std::int32_t> tokens, std::span<const double> scores) {
  std::vector<Entry> entries(tokens.size()), moved(tokens.size());
  std::vector<Histogram> counts(kDigits, Histogram{});
  for (std::size_t n = 0; n < tokens.size(); ++n) {
    entries[n] = {descending_key(scores[static_cast<std::size_t>(tokens[n])]), tokens[n]};
    for (int place = 0; place < kDigits; ++place)
      ++counts[static_cast<std::size_t>(place)][digit(entries[n].key, place)];
  }
  for (int place = 0; place < kDigits; ++place)
    sort_by_digit(entries, moved, counts[static_cast<std::size_t>(place)], place);
  std::transform(entries.begin(), entries.end(), tokens.begin(), [](const Entry& entry) { return entry.token; });
}

}  // namespace

void sort_descending(std::span<std::int32_t> tokens, std::span<const double> scores) {
  if (tokens.size() >= kFew) return radix_sort(tokens, scores);
  std::stable_sort(tokens.begin(), tokens.end(), [&](std::int32_t a, std::int32_t b) { return scores[a] > scores[b]; });
}

}  // namespace laprox
