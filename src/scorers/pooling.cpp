#include "scorers/pooling.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "laprox/error.h"

namespace laprox {

namespace {

/// Tokens that are pooled at a time: they stay in the first-level cache, offset by offset of the kernel.
constexpr Index kPooledTokens = 1024;

/// What `count` tokens from `first` on become: the largest or the mean of themselves and their neighbours in `row`.
Eigen::ArrayXd pooled(const Eigen::ArrayXd& row, Index first, Index count, Pool pool, Index kernel) {
  const bool maximum = pool == Pool::maximum;
  Eigen::ArrayXd result = Eigen::ArrayXd::Constant(count, maximum ? -std::numeric_limits<double>::infinity() : 0.0);
  for (Index offset = -(kernel / 2); offset <= kernel / 2; ++offset) {
    // The tokens that have a neighbour there.
    const Index begin = std::max(first, -offset), end = std::min(first + count, row.size() - offset);
    if (begin >= end) continue;
    auto target = result.segment(begin - first, end - begin);
    const auto neighbours = row.segment(begin + offset, end - begin);
    if (maximum) {
      target = target.max(neighbours);
    } else {
      target += neighbours;
    }
  }
  if (!maximum) result /= static_cast<double>(kernel);
  return result;
}

}  // namespace

std::vector<OptionSpec> pooling_options(const std::string& pool, Index kernel) {
  return {OptionSpec::choice("pool", pool, {"max", "avg", "none"},
                             "how neighbours share a score; avg counts missing ones as 0"),
          OptionSpec::integer("kernel", kernel, 1, 1025, "tokens that share it; odd")};
}

Pool pool_of(const Options& options) {
  const std::string& name = options.text("pool");
  return name == "max" ? Pool::maximum : name == "avg" ? Pool::average : Pool::none;
}

void check_kernel(Index kernel, const std::string& who) {
  if (kernel % 2 == 0) {
    throw UsageError(
        fmt::format("{}: option kernel: expected an odd number, found {}; an even kernel has no centre", who, kernel));
  }
}

void pool_between(Matrix& rows, Index first, Index last, Pool pool, Index kernel) {
  if (pool == Pool::none || first >= last) return;
  for (Index r = 0; r < rows.rows(); ++r) {
    const Eigen::ArrayXd row = rows.row(r).segment(first, last - first);
    for (Index token = 0; token < row.size(); token += kPooledTokens) {
      const Index count = std::min(kPooledTokens, row.size() - token);
      rows.row(r).segment(first + token, count) = pooled(row, token, count, pool, kernel);
    }
  }
}

void pool_prefix(Matrix& rows, Index prefix, Pool pool, Index kernel) { pool_between(rows, 0, prefix, pool, kernel); }

}  // namespace laprox
