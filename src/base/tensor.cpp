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

Index StridedArray::size() const {
  Index size = 1;
  for (Index extent : shape) size *= extent;
  return size;
}

bool StridedArray::is_dense() const {
  Index expected = 1;
  for (std::size_t d = shape.size(); d-- > 0; expected *= shape[d]) {
    if (shape[d] != 1 && strides[d] != expected) return false;
  }
  return true;
}

StridedArray StridedArray::part(std::size_t dimension, Index first, Index count) const {
  require(first >= 0 && count >= 0 && first + count <= shape.at(dimension), "a part of an array lies within it");
  StridedArray part = *this;
  part.shape[dimension] = count;
  part.data += first * strides[dimension] * size_of(type);
  return part;
}

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

Tensor Tensor::borrow(StridedArray array, std::shared_ptr<const DeviceMemory> memory,
                      std::shared_ptr<const void> owner) {
  require(memory != nullptr && array.strides.size() == array.shape.size(), "a device's array says where it lies");
  Tensor tensor;
  tensor.type_ = array.type;
  tensor.shape_ = array.shape;
  tensor.size_ = array.size();
  tensor.device_ = std::make_shared<const OnDevice>(std::move(array), std::move(memory), std::move(owner));
  return tensor;
}

const StridedArray& Tensor::on_device() const {
  require(device_ != nullptr, "the tensor is in a device's memory");
  return device_->array;
}

Tensor Tensor::device_part(std::size_t dimension, Index first, Index count) const {
  return borrow(on_device().part(dimension, first, count), device_->memory, device_->owner);
}

void Tensor::check_on_host() const {
  if (!device_) return;
  throw BackendError(
      fmt::format("a tensor lies in the memory of {}, and this backend reads the host's; use the backend "
                  "of that device, or copy the tensor to the host",
                  device_->memory->name()));
}

void Tensor::check_type(ElementType wanted) const {
  if (type_ == wanted) return;
  throw Bug(fmt::format("a {} tensor is not read as {}", to_string(type_), to_string(wanted)));
}

}  // namespace laprox
