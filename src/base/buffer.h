#pragma once

#include <memory>

#include "base/memory.h"
#include "laprox/tensor.h"

namespace laprox {

/// Uninitialised memory for `size` elements, aligned to 64 bytes.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(Index size)
      : size_(size), memory_(static_cast<T*>(allocate_memory(static_cast<std::size_t>(size) * sizeof(T)))) {}

  /// Memory for at least `size` elements, whose old contents are lost: for scratch that serves one task after the
  /// other.
  T* at_least(Index size) {
    if (size > size_) *this = Buffer(size);
    return data();
  }

  Index size() const { return size_; }
  T* data() { return memory_.get(); }
  const T* data() const { return memory_.get(); }
  T& operator[](Index i) { return memory_.get()[i]; }
  const T& operator[](Index i) const { return memory_.get()[i]; }

 private:
  struct Delete {
    void operator()(T* memory) const { release_memory(memory); }
  };
  Index size_ = 0;
  std::unique_ptr<T, Delete> memory_;
};

}  // namespace laprox
