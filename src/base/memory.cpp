#include "base/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

namespace laprox {

namespace {

constexpr std::size_t kLine = 64, kHugePage = std::size_t{1} << 21;

bool is_large(std::size_t bytes) { return bytes >= 2 * kHugePage; }

void* from_system(std::size_t bytes, std::size_t alignment) {
  void* memory = std::aligned_alloc(alignment, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: refusal changes nothing
#endif
  return memory;
}

/// Released large pieces, by size.
class LargePieces {
 public:
  void* take(std::size_t bytes) {
    const std::scoped_lock lock(mutex_);
    auto piece = released_.lower_bound(bytes);
    if (piece == released_.end() || piece->first > bytes + bytes / 8) {
      free_released();
      piece = released_.emplace(bytes, from_system(bytes, kHugePage));
    }
    void* memory = piece->second;
    sizes_[memory] = piece->first;
    released_.erase(piece);
    return memory;
  }

  /// False where `memory` is no large piece.
  bool give_back(void* memory) {
    const std::scoped_lock lock(mutex_);
    const auto piece = sizes_.find(memory);
    if (piece == sizes_.end()) return false;
    released_.emplace(piece->second, memory);
    sizes_.erase(piece);
    return true;
  }

 private:
  void free_released() {
    for (const auto& [size, memory] : released_) std::free(memory);
    released_.clear();
  }

  std::mutex mutex_;
  std::multimap<std::size_t, void*> released_;
  std::map<void*, std::size_t> sizes_;  ///< of the pieces in use
};

/// Never destroyed: tensors in static storage may be released after it would be.
LargePieces& large_pieces() {
  static auto* pieces = new LargePieces;
  return *pieces;
}

}  // namespace

void* allocate_memory(std::size_t bytes) {
  if (bytes > SIZE_MAX - kHugePage) throw std::bad_alloc();
  const std::size_t unit = is_large(bytes) ? kHugePage : kLine;
  const std::size_t whole = bytes == 0 ? kLine : (bytes + unit - 1) / unit * unit;
  return is_large(bytes) ? large_pieces().take(whole) : from_system(whole, kLine);
}

void release_memory(void* memory) {
  const bool may_be_large = reinterpret_cast<std::uintptr_t>(memory) % kHugePage == 0;
  if (!may_be_large || memory == nullptr || !large_pieces().give_back(memory)) std::free(memory);
}

}  // namespace laprox
