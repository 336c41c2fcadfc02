#include "laprox/tensor.h"

#include <fmt/format.h>

#include <new>

#include "base/memory.h"
#include "laprox/error.h"

namespace laprox {

std::string_view to_string(ElementType type) {
  switch (type) {
    case ElementType::float16:
      return "float16";
    case ElementType::bfloat16:
      return "bfloat16";
    case ElementType::float32:
      return "float32";
    case ElementType::float64:
      return "float64";
  }
  throw Bug("unknown element type");
}

Index size_of(ElementType type) { return type == ElementType::float64 ? 8 : type == ElementType::float32 ? 4 : 2; }

void Tensor::Release::operator()(std::byte* memory) const {
  if (!borrowed) release_memory(memory);
}

Tensor::Tensor(ElementType type, std::vector<Index> shape) : type_(type), shape_(std::move(shape)), size_(1) {
  for (Index extent : shape_) {
    // A damaged file may declare any shape.
    if (__builtin_mul_overflow(size_, extent, &size_) || size_ > (Index{1} << 56)) throw std::bad_alloc();
  }
  memory_.reset(static_cast<std::byte*>(allocate_memory(static_cast<std::size_t>(bytes()))));
}

Tensor Tensor::borrow(ElementType type, std::vector<Index> shape, const std::byte* data,
                      std::shared_ptr<const void> owner) {
  Tensor tensor;
  tensor.type_ = type;
  tensor.shape_ = std::move(shape);
  tensor.size_ = 1;
  for (Index extent : tensor.shape_) tensor.size_ *= extent;
  // Nobody writes to a layer's tensors once they are read, so that the constness which is cast away here is kept.
  tensor.memory_ = {const_cast<std::byte*>(data), Release(std::move(owner))};
  return tensor;
}

void Tensor::check_type(ElementType wanted) const {
  if (type_ == wanted) return;
  throw Bug(fmt::format("a {} tensor is not read as {}", to_string(type_), to_string(wanted)));
}

}  // namespace laprox
