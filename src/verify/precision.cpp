#include "verify/precision.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "laprox/error.h"

namespace laprox::verify {

namespace {

template <class Stored, class T>
void round_through(T* values, Index count) {
  if constexpr (std::is_same_v<Stored, T>) return;
  Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>> array(values, count);
  if constexpr (sizeof(Stored) == 2) {
    array = array.template cast<float>().template cast<Stored>().template cast<float>().template cast<T>();
  } else {
    array = array.template cast<Stored>().template cast<T>();
  }
}

}  // namespace

Precision::Precision(ElementType type) : type_(type), digits_(0), least_exponent_(0) {
  switch (type) {
    case ElementType::float16:
      digits_ = 11, least_exponent_ = -14;
      return;
    case ElementType::bfloat16:
      digits_ = 8, least_exponent_ = -126;
      return;
    case ElementType::float32:
      digits_ = 24, least_exponent_ = -126;
      return;
    case ElementType::float64:
      digits_ = 53, least_exponent_ = -1022;
      return;
  }
  throw Bug("unknown element type");
}

double Precision::unit_roundoff() const { return std::ldexp(1.0, -digits_); }

double Precision::underflow() const {
  return type_ == ElementType::float16 ? ulp(0) : std::ldexp(1.0, least_exponent_);
}

double Precision::ulp(double value) const {
  if (!std::isfinite(value)) return std::numeric_limits<double>::quiet_NaN();
  const int exponent = value == 0 ? least_exponent_ : std::max(least_exponent_, std::ilogb(value));
  return std::ldexp(1.0, exponent - digits_ + 1);
}

template <class T>
void Precision::round(T* values, Index count) const {
  switch (type_) {
    case ElementType::float16:
      return round_through<Eigen::half>(values, count);
    case ElementType::bfloat16:
      return round_through<Eigen::bfloat16>(values, count);
    case ElementType::float32:
      return round_through<float>(values, count);
    case ElementType::float64:
      return;
  }
}

template void Precision::round(float*, Index) const;
template void Precision::round(double*, Index) const;

}  // namespace laprox::verify
