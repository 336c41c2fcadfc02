#pragma once

#include <span>
#include <string>
#include <vector>

#include "laprox/options.h"
#include "laprox/tensor.h"

namespace laprox {

enum class Pool { none, average, maximum };

/// The options `pool` and `kernel`, which every pooled scorer has.
std::vector<OptionSpec> pooling_options(const std::string& pool, Index kernel);
Pool pool_of(const Options& options);

/// Throws UsageError, naming `who`, on an even kernel: it would change the length.
void check_kernel(Index kernel, const std::string& who);

/// Pools the columns [first, last) of every row with an odd kernel and stride 1; the other columns stay as they are,
/// and none of them is a neighbour. average: zeros are padded and the divisor is always the kernel (torch's
/// count_include_pad). maximum: the largest valid neighbour.
void pool_between(Matrix& rows, Index first, Index last, Pool pool, Index kernel);
/// The same of the first `prefix` columns.
void pool_prefix(Matrix& rows, Index prefix, Pool pool, Index kernel);

}  // namespace laprox
