#include "scorers/pooling.h"

#include <fmt/format.h>

#include <algorithm>

#include "laprox/error.h"

namespace laprox {

namespace {

double pooled(const std::vector<double>& row, Index token, Pool pool, Index kernel) {
  const Index first = std::max<Index>(0, token - kernel / 2);
  const Index last = std::min<Index>(static_cast<Index>(row.size()) - 1, token + kernel / 2);
  const auto begin = row.begin() + first, end = row.begin() + last + 1;
  if (pool == Pool::maximum) return *std::max_element(begin, end);
  double sum = 0;
  for (auto value = begin; value != end; ++value) sum += *value;
  return sum / static_cast<double>(kernel);
}

}  // namespace

std::vector<OptionSpec> pooling_options(const std::string& pool, Index kernel) {
  return {OptionSpec::choice("pool", pool, {"max", "avg", "none"}, "how neighbouring tokens share a score"),
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
  std::vector<double> row(static_cast<std::size_t>(last - first));
  for (Index r = 0; r < rows.rows(); ++r) {
    std::copy_n(&rows(r, first), last - first, row.begin());
    for (Index token = first; token < last; ++token) rows(r, token) = pooled(row, token - first, pool, kernel);
  }
}

void pool_prefix(Matrix& rows, Index prefix, Pool pool, Index kernel) { pool_between(rows, 0, prefix, pool, kernel); }

}  // namespace laprox
