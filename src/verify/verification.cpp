#include <algorithm>

#include "laprox/verify.h"

namespace laprox {

namespace {

bool all_passed(const std::vector<VerdictPart>& parts) {
  return std::all_of(parts.begin(), parts.end(), [](const VerdictPart& part) { return part.passed; });
}

}  // namespace

bool ValueCheck::passed() const { return all_passed(parts); }
bool KeptCheck::passed() const { return all_passed(parts); }

bool Verification::passed() const {
  return std::all_of(values.begin(), values.end(), [](const ValueCheck& check) { return check.passed(); }) &&
         std::all_of(kept.begin(), kept.end(), [](const KeptCheck& check) { return check.passed(); });
}

}  // namespace laprox
