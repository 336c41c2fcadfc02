#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace laprox {

/// A published method that is a composition: parse_policy reads its name as the policy it stands for.
struct Method {
  std::string name;     ///< kebab-case; no scorer has it
  std::string policy;   ///< "scorer+allocator:option=value,..."
  std::string summary;  ///< one line
  std::string paper;    ///< title, year and arXiv number
  bool nested;          ///< whether a larger budget keeps all that a smaller one keeps
};

const std::vector<Method>& methods();

/// Null where there is no such method.
const Method* find_method(std::string_view name);

}  // namespace laprox
