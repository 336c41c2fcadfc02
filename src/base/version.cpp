#include "laprox/version.h"

#include "laprox_version.h"

namespace laprox {

std::string version() { return LAPROX_VERSION; }
std::string commit() { return LAPROX_COMMIT; }

}  // namespace laprox
