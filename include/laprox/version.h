#pragma once

#include <string>

namespace laprox {

std::string version();  ///< of laprox, for example "0.1.0"
std::string commit();   ///< the git commit it was built from, or "unknown"

}  // namespace laprox
