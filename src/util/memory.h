#pragma once

#include <cstddef>

namespace laprox {

/// Uninitialised memory aligned to at least 64 bytes. Large pieces ask for huge pages, whose first touch costs a
/// fraction of that of ordinary ones. Throws std::bad_alloc.
void* allocate_memory(std::size_t bytes);
void release_memory(void* memory);

}  // namespace laprox
