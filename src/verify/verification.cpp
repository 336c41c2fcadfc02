#include <algorithm>

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

bool ValueCheck::passed() const { return all_passed(parts); }
bool KeptCheck::passed() const { return all_passed(parts); }

const VerdictPart& ValueCheck::part(std::string_view part_name) const { return named(parts, part_name); }
const VerdictPart& KeptCheck::part(std::string_view part_name) const { return named(parts, part_name); }

bool Verification::passed() const {
  return std::all_of(values.begin(), values.end(), [](const ValueCheck& check) { return check.passed(); }) &&
         std::all_of(kept.begin(), kept.end(), [](const KeptCheck& check) { return check.passed(); });
}

}  // namespace laprox
