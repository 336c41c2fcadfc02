#pragma once

#include "laprox/tensor.h"

namespace laprox::verify {

/// The numbers of a floating-point type, as arithmetic in it would leave them.
class Precision {
 public:
  explicit Precision(ElementType type);

  ElementType type() const { return type_; }
  /// Half the spacing of numbers next to 1: the relative error of one rounding.
  double unit_roundoff() const;
  /// The spacing of the type's numbers at `value`, down to its subnormal numbers.
  double ulp(double value) const;

  /// Below this, numbers may be lost: to the subnormal spacing of float16, which hardware honours, or to zero in the
  /// other types, whose subnormal numbers fast arithmetic flushes.
  double underflow() const;

  /// Rounds to nearest, ties to even; beyond the type's range to infinity, as hardware does.
  template <class T>
  void round(T* values, Index count) const;
  template <class Derived>
  void round(Eigen::PlainObjectBase<Derived>& values) const {
    round(values.data(), values.size());
  }

 private:
  ElementType type_;
  int digits_, least_exponent_;  ///< significant bits, and the exponent of the smallest normal number
};

}  // namespace laprox::verify
