#include "commands.h"

namespace laprox::cli {

void add_synth(CLI::App&) {}

}  // namespace laprox::cli
