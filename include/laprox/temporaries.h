#pragma once

namespace laprox {

/// Lets SIGINT, SIGTERM and SIGHUP remove the files that are being written before they end the program. For programs; a
/// library does not install signal handlers by itself.
void remove_temporaries_on_signals();

}  // namespace laprox
