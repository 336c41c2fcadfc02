#pragma once

namespace laprox::io {

inline constexpr const char* kReportFormat = "laprox-report";
inline constexpr int kReportVersion = 1;
/// Attributes that say more than the labels do are named after their dimension: dump_sha256, dump_model, policy_spec.
inline constexpr const char* kNumberDimensions[] = {"layer", "kv_head", "query_head"};
/// Those that only some reports have.
inline constexpr const char* kDecodingDimensions[] = {"segment", "position"};

}  // namespace laprox::io
