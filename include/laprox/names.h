#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace laprox {

/// The known name nearest to `name`, for "did you mean"; the closest by edit distance, prefixes first.
std::string nearest(std::string_view name, const std::vector<std::string>& known);

/// The known name that `name` is a misspelling of (at most two letters away, and not itself known), or nothing.
std::optional<std::string> near_miss(std::string_view name, const std::vector<std::string>& known);

/// The text with control characters but line ends and tabs written as \\x1b: a file's words must not steer a terminal.
std::string printable(std::string_view text);

}  // namespace laprox
