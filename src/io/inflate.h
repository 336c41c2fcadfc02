#pragma once

#include <cstddef>
#include <optional>
#include <vector>

namespace laprox::io {

/// Inflates the first `deflated` bytes of `packed`, which should become `expected` bytes, into `target`, which is made
/// one byte longer than that, so that a stream that is too long shows as well. Returns how many they became; nothing
/// where the stream is damaged or longer still.
std::optional<std::size_t> inflate(const std::vector<unsigned char>& packed, std::size_t deflated, std::size_t expected,
                                   std::vector<unsigned char>& target);

}  // namespace laprox::io
