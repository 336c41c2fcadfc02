#pragma once

#include <cstdint>
#include <cstring>

namespace laprox::cpu {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

/// One vector register of floats; GCC and Clang give it element-wise operators.
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef std::int32_t IntLanes __attribute__((vector_size(kLanes * sizeof(float))));

inline Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline void store(float* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

inline Lanes broadcast(float value) { return value - Lanes{}; }

inline Lanes select(IntLanes condition, Lanes yes, Lanes no) {
  return reinterpret_cast<Lanes>((condition & reinterpret_cast<IntLanes>(yes)) |
                                 (~condition & reinterpret_cast<IntLanes>(no)));
}
inline Lanes max(Lanes a, Lanes b) { return a > b ? a : b; }

/// The sum of all lanes, always in the same order.
inline float sum(Lanes lanes) {
  float values[kLanes];
  store(values, lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) values[i] += values[i + width];
  }
  return values[0];
}

inline float maximum(Lanes lanes) {
  float values[kLanes];
  store(values, lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) values[i] = values[i] > values[i + width] ? values[i] : values[i + width];
  }
  return values[0];
}

/// exp(x) for x <= 0, within 2 units in the last place; exactly 1 at 0, and exactly 0 below the normal range (x <
/// -87.3) and at -infinity. 2^n * e^r with |r| <= ln(2) / 2 and the minimax polynomial of the Cephes library.
inline Lanes exp_nonpositive(Lanes x) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Lanes shifted = x * 1.44269504088896341F + kRound;
  const IntLanes exponent = reinterpret_cast<IntLanes>(shifted) - reinterpret_cast<IntLanes>(broadcast(kRound));
  const Lanes n = shifted - kRound;
  const Lanes r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  Lanes p = r * 1.9875691500E-4F + 1.3981999507E-3F;
  p = p * r + 8.3334519073E-3F;
  p = p * r + 4.1665795894E-2F;
  p = p * r + 1.6666665459E-1F;
  p = p * r + 5.0000001201E-1F;
  p = p * (r * r) + r + 1.0F;
  const Lanes power = reinterpret_cast<Lanes>((exponent + 127) << 23);
  return select(x < -87.3F, Lanes{}, p * power);
}

/// tanh(x) = sign(x) (1 - e) / (1 + e), e = exp(-2|x|); near 0, where 1 - e cancels, the first terms of its series. A
/// large soft-cap multiplies what is lost there.
inline Lanes tanh(Lanes x) {
  const Lanes magnitude = x < 0 ? -x : x;
  const Lanes e = exp_nonpositive(-2.0F * magnitude);
  const Lanes value = (1.0F - e) / (1.0F + e);
  const Lanes square = x * x;
  const Lanes series = x + x * square * (square * 0.13333333F - 0.33333333F);
  return select(magnitude < 0.1F, series, x < 0 ? -value : value);
}

}  // namespace laprox::cpu
