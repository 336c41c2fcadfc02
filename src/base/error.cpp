#include "laprox/error.h"

#include <fmt/format.h>

namespace laprox {

DumpError::DumpError(std::string_view file, std::string_view object, std::string_view expected, std::string_view found,
                     std::string_view advice)
    : FileError(fmt::format("{}: {}: expected {}, found {}{}{}", file, object, expected, found,
                            advice.empty() ? "" : "; ", advice)) {}

void require(bool holds, std::string_view invariant, std::source_location where) {
  if (!holds) throw Bug(fmt::format("broken invariant: {} ({}:{})", invariant, where.file_name(), where.line()));
}

}  // namespace laprox
