#include "laprox/allocator.h"

namespace laprox {

#define LAPROX_ALLOCATOR(name) AllocatorInfo name##_allocator_info();
#include "allocators/list.inc"
#undef LAPROX_ALLOCATOR

const std::vector<AllocatorInfo>& allocators() {
#define LAPROX_ALLOCATOR(name) name##_allocator_info(),
  static const std::vector<AllocatorInfo> registry{
#include "allocators/list.inc"
  };
#undef LAPROX_ALLOCATOR
  return registry;
}

}  // namespace laprox
