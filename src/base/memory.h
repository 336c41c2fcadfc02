#pragma once

#include <cstddef>

namespace laprox {

/// Uninitialised memory aligned to at least 64 bytes. Large pieces ask for huge pages and are handed out again after
/// their release, because the first touch of fresh memory costs more than many a computation on it: a sweep reads layer
/// after layer into the same place. A request that no released piece serves gives all of them back to the system, so
/// that no more is held than was needed at one time. Throws std::bad_alloc.
void* allocate_memory(std::size_t bytes);
void release_memory(void* memory);

}  // namespace laprox
