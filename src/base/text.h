#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "laprox/names.h"
#include "laprox/tensor.h"

namespace laprox {

std::vector<std::string> split(std::string_view text, char separator);
std::string trim(std::string_view text);

/// Lower case, with '-' for '_': the canonical spelling of names.
std::string kebab(std::string_view text);

/// Whole-text conversions: nothing where any character is left over or the number is not finite.
std::optional<double> parse_real(std::string_view text);
std::optional<long long> parse_integer(std::string_view text);

/// "[2, 3]": a shape, or the indices of an element.
std::string describe(const std::vector<Index>& numbers);
/// The indices of an element of an array of this shape, by its number in row-major order.
std::vector<Index> indices_of(Index element, const std::vector<Index>& shape);

std::string join(const std::vector<std::string>& parts, std::string_view separator);

}  // namespace laprox
