#include <algorithm>
#include <cmath>

#include "laprox/error.h"
#include "laprox/verify.h"

namespace laprox {

namespace {

bool all_passed(const std::vector<VerdictPart>& parts) {
  return std::all_of(parts.begin(), parts.end(), [](const VerdictPart& part) { return part.passed; });
}

const VerdictPart& named(const std::vector<VerdictPart>& parts, std::string_view name) {
  const auto found =
      std::find_if(parts.begin(), parts.end(), [&](const VerdictPart& part) { return part.name == name; });
  require(found != parts.end(), "a verdict has the parts that it is asked for");
  return *found;
}

}  // namespace

void Failing::add(Index layer, Index row, Index column, double found, double expected) {
  ++elements;
  rows[layer].insert(row);
  first_column = first_column < 0 ? column : std::min(first_column, column);
  last_column = std::max(last_column, column);
  if (found == 0 || expected == 0 || !std::isfinite(found) || !std::isfinite(expected)) return;
  least_ratio = std::min(least_ratio, found / expected);
  most_ratio = std::max(most_ratio, found / expected);
}

bool ValueCheck::passed() const { return all_passed(parts); }
bool KeptCheck::passed() const { return all_passed(parts); }

const VerdictPart& ValueCheck::part(std::string_view part_name) const { return named(parts, part_name); }
const VerdictPart& KeptCheck::part(std::string_view part_name) const { return named(parts, part_name); }

bool Verification::passed() const {
  return std::all_of(values.begin(), values.end(), [](const ValueCheck& check) { return check.passed(); }) &&
         std::all_of(kept.begin(), kept.end(), [](const KeptCheck& check) { return check.passed(); });
}

}  // namespace laprox
