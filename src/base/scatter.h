#pragma once

#include <cstdint>

namespace laprox {

/// A step of SplitMix64 (Steele, Lea and Flood 2014): a bijection that scatters neighbouring numbers.
inline std::uint64_t scatter(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace laprox
