#include "io/inflate.h"

#include <zlib.h>

namespace laprox::io {

std::optional<std::size_t> inflate(const std::vector<unsigned char>& packed, std::size_t deflated, std::size_t expected,
                                   std::vector<unsigned char>& target) {
  constexpr double most = 1032;  // bytes that one byte of a deflated stream can stand for
  if (static_cast<double>(expected) > most * static_cast<double>(deflated)) return std::nullopt;
  target.resize(expected + 1);
  uLongf length = target.size();
  const int status = uncompress(target.data(), &length, packed.data(), static_cast<uLong>(deflated));
  return status == Z_OK ? std::optional<std::size_t>(length) : std::nullopt;
}

}  // namespace laprox::io
