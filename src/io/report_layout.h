#pragma once

#include <algorithm>
#include <iterator>
#include <string_view>

namespace laprox::io {

inline constexpr const char* kReportFormat = "laprox-report";
inline constexpr int kReportVersion = 1;
/// Attributes that say more than the labels do are named after their dimension: dump_sha256, dump_model, policy_spec.
inline constexpr const char* kNumberDimensions[] = {"layer", "kv_head", "query_head"};
/// Those that only some reports have.
inline constexpr const char* kDecodingDimensions[] = {"segment", "position"};

inline constexpr const char* kLabelDimensions[] = {"dump", "policy", "budget"};

inline bool is_dimension(std::string_view name) {
  const auto among = [&](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  return among(kLabelDimensions) || among(kNumberDimensions) || among(kDecodingDimensions);
}

}  // namespace laprox::io
