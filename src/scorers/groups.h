#pragma once

#include <string>

#include "laprox/options.h"
#include "laprox/tensor.h"

namespace laprox {

/// How the scores of the query heads that share a KV head become one.
enum class GroupReduction { mean, maximum, sum };

OptionSpec group_option(const std::string& fallback);
GroupReduction group_of(const Options& options);

/// [kv_heads * group, n] -> [kv_heads, n], rows of a group being neighbours.
Matrix reduce_groups(const Matrix& query_heads, Index group, GroupReduction reduction);

}  // namespace laprox
