#include "base/convert.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/parallel.h"

namespace laprox::io {

namespace {

template <class T>
auto as_array(const std::byte* bytes, Index count) {
  return Eigen::Map<const Eigen::Array<T, Eigen::Dynamic, 1>>(reinterpret_cast<const T*>(bytes), count);
}

/// Eigen's half and bfloat16 casts work on whole vectors of the instruction set.
template <class Stored, class T>
void cast(const std::byte* source, T* target, Index count) {
  Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>> out(target, count);
  if constexpr (sizeof(Stored) == 2) {
    out = as_array<Stored>(source, count).template cast<float>().template cast<T>();
  } else {
    out = as_array<Stored>(source, count).template cast<T>();
  }
}

template <class Stored, class T>
void cast_to(const T* source, std::byte* target, Index count) {
  const Eigen::Map<const Eigen::Array<T, Eigen::Dynamic, 1>> in(source, count);
  Eigen::Map<Eigen::Array<Stored, Eigen::Dynamic, 1>> out(reinterpret_cast<Stored*>(target), count);
  if constexpr (sizeof(Stored) == 2) {
    out = in.template cast<float>().template cast<Stored>();
  } else {
    out = in.template cast<Stored>();
  }
}

/// The first element whose exponent bits are all set: NaN or infinity. Integers, so that the loop needs no branch and
/// runs on whole vectors.
template <class Bits>
std::optional<Index> first_with_exponent(const std::byte* values, Bits exponent, Index count) {
  const auto bits = as_array<Bits>(values, count);
  Bits bad = 0;
  for (Index i = 0; i < count; ++i) bad |= static_cast<Bits>((bits[i] & exponent) == exponent);
  if (bad == 0) return std::nullopt;
  for (Index i = 0;; ++i) {
    if ((bits[i] & exponent) == exponent) return i;
  }
}

std::optional<Index> first_non_finite_in_turn(const std::byte* values, ElementType type, Index count) {
  switch (type) {
    case ElementType::float16:
      return first_with_exponent<std::uint16_t>(values, 0x7c00U, count);
    case ElementType::bfloat16:
      return first_with_exponent<std::uint16_t>(values, 0x7f80U, count);
    case ElementType::float32:
      return first_with_exponent<std::uint32_t>(values, 0x7f800000U, count);
    case ElementType::float64:
      return first_with_exponent<std::uint64_t>(values, 0x7ff0000000000000ULL, count);
  }
  return std::nullopt;
}

/// Elements that one thread looks through at a time.
constexpr Index kPiece = Index{1} << 21;

}  // namespace

template <class T>
void convert(const std::byte* source, ElementType from, T* target, Index count) {
  switch (from) {
    case ElementType::float16:
      return cast<Eigen::half>(source, target, count);
    case ElementType::bfloat16:
      return cast<Eigen::bfloat16>(source, target, count);
    case ElementType::float32:
      return cast<float>(source, target, count);
    case ElementType::float64:
      return cast<double>(source, target, count);
  }
}

template <class T>
void convert_to(const T* source, std::byte* target, ElementType to, Index count) {
  switch (to) {
    case ElementType::float16:
      return cast_to<Eigen::half>(source, target, count);
    case ElementType::bfloat16:
      return cast_to<Eigen::bfloat16>(source, target, count);
    case ElementType::float32:
      return cast_to<float>(source, target, count);
    case ElementType::float64:
      return cast_to<double>(source, target, count);
  }
}

std::optional<Index> first_non_finite(const std::byte* values, ElementType type, Index count, int threads) {
  const Index pieces = (count + kPiece - 1) / kPiece;
  if (threads == 1 || pieces <= 1) return first_non_finite_in_turn(values, type, count);
  std::vector<Index> first(static_cast<std::size_t>(pieces), count);
  parallel_for(threads, pieces, [&](Index piece) {
    const Index begin = piece * kPiece;
    const auto bad = first_non_finite_in_turn(values + begin * size_of(type), type, std::min(kPiece, count - begin));
    if (bad) first[piece] = begin + *bad;
  });
  const Index bad = *std::min_element(first.begin(), first.end());
  return bad < count ? std::optional(bad) : std::nullopt;
}

template void convert(const std::byte*, ElementType, float*, Index);
template void convert(const std::byte*, ElementType, double*, Index);
template void convert_to(const float*, std::byte*, ElementType, Index);
template void convert_to(const double*, std::byte*, ElementType, Index);

}  // namespace laprox::io
