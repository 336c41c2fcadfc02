#pragma once

#include <cstdint>
#include <span>

namespace laprox {

/// Sorts `tokens`, ascending, by their scores, the highest first; equal scores stay in the order of their tokens. In
/// time linear in their number where they are many. Scores are not NaN.
void sort_descending(std::span<std::int32_t> tokens, std::span<const double> scores);

}  // namespace laprox
