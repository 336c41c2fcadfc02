#pragma once

namespace laprox::io {

inline constexpr const char* kScoreFormat = "laprox-scores";
inline constexpr int kScoreVersion = 1;

}  // namespace laprox::io
