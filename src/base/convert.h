#pragma once

#include <cstddef>
#include <optional>

#include "laprox/tensor.h"

namespace laprox::io {

/// Converts `count` elements of type `from` at `source` to T (float or double), in bulk.
template <class T>
void convert(const std::byte* source, ElementType from, T* target, Index count);

/// Converts `count` floats or doubles to `to` at `target`, rounding to the nearest, ties to even.
template <class T>
void convert_to(const T* source, std::byte* target, ElementType to, Index count);

/// The index of the first element of type `type` that is NaN or infinite, if there is one; looked for by `threads`.
std::optional<Index> first_non_finite(const std::byte* values, ElementType type, Index count, int threads = 1);
template <class T>
std::optional<Index> first_non_finite(const T* values, Index count) {
  return first_non_finite(reinterpret_cast<const std::byte*>(values), element_type_of<T>, count);
}

}  // namespace laprox::io
