#include "util/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace laprox {

void* allocate_memory(std::size_t bytes) {
  constexpr std::size_t kLine = 64, kHugePage = std::size_t{1} << 21;
  const std::size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kLine;
  if (bytes > SIZE_MAX - alignment) throw std::bad_alloc();
  void* memory =
      std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment + (bytes == 0 ? kLine : 0));
  if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: refusal changes nothing
#endif
  return memory;
}

void release_memory(void* memory) { std::free(memory); }

}  // namespace laprox
