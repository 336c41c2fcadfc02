#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace laprox {

using Index = Eigen::Index;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using MatrixView = Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

/// The element types a dump may hold. bfloat16 is stored as its uint16 bit pattern.
enum class ElementType : std::uint8_t { float16, bfloat16, float32, float64 };

std::string_view to_string(ElementType type);
Index size_of(ElementType type);

/// The type with which memory of `type` is read in C++: only float32 and float64 have one.
template <class T>
inline constexpr ElementType element_type_of = sizeof(T) == sizeof(float) ? ElementType::float32 : ElementType::float64;

/// An array of rank 1 to 3 somewhere, of which every dimension has a stride.
struct StridedArray {
  ElementType type{};
  std::vector<Index> shape;
  std::vector<Index> strides;  ///< in elements, one per dimension
  const std::byte* data = nullptr;

  Index size() const;
  /// Whether it is row-major without gaps.
  bool is_dense() const;
  /// Elements [first, first + count) of a dimension.
  StridedArray part(std::size_t dimension, Index first, Index count) const;
};

/// Memory that the CPU does not read, such as a GPU's. What is asked of it waits until what it holds is there.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  /// For messages, such as "cuda:0".
  virtual std::string name() const = 0;
  /// Copies `source`, row-major and without gaps, to the host.
  virtual void download(const StridedArray& source, std::byte* target) const = 0;
  /// Which element in row-major order is the first that is NaN or infinite.
  virtual std::optional<Index> first_non_finite(const StridedArray& source) const = 0;
};

/// A row-major array of rank 1 to 3 whose element type is known at run time. Its memory, unless it is
/// borrowed, is uninitialised and aligned to 64 bytes. An array in a device's memory may have gaps; what reads it asks
/// for memory() first.
class Tensor {
 public:
  Tensor() = default;
  Tensor(ElementType type, std::vector<Index> shape);
  /// Somebody else's elements, which are only read and which `owner` keeps alive; aligned as their type is.
  static Tensor borrow(ElementType type, std::vector<Index> shape, const std::byte* data,
                       std::shared_ptr<const void> owner);
  /// The same in the memory of a device.
  static Tensor borrow(StridedArray array, std::shared_ptr<const DeviceMemory> memory,
                       std::shared_ptr<const void> owner);

  /// Where it lies: nullptr for the host's memory.
  const DeviceMemory* memory() const { return device_ ? device_->memory.get() : nullptr; }
  /// Of a device's memory: where its elements are there. Throws Bug for the host's.
  const StridedArray& on_device() const;
  /// Of a device's memory: elements [first, first + count) of a dimension, where they lie. Throws Bug for the host's.
  Tensor device_part(std::size_t dimension, Index first, Index count) const;

  ElementType type() const { return type_; }
  const std::vector<Index>& shape() const { return shape_; }
  Index size() const { return size_; }
  Index bytes() const { return size_ * size_of(type_); }

  /// The elements in the host's memory. Throws BackendError where they are in a device's.
  std::byte* raw() {
    check_on_host();
    return memory_.get();
  }
  const std::byte* raw() const {
    check_on_host();
    return memory_.get();
  }

  /// The elements as T (float or double); throws Bug where that is not the element type.
  template <class T>
  T* data() {
    check_type(element_type_of<T>);
    return reinterpret_cast<T*>(raw());
  }
  template <class T>
  const T* data() const {
    check_type(element_type_of<T>);
    return reinterpret_cast<const T*>(raw());
  }

  /// The `slice`-th [rows, columns] matrix of a tensor of rank 3, or the whole of one of rank 2.
  template <class T>
  MatrixView<T> matrix(Index slice = 0) const {
    const Index rows = shape_.at(shape_.size() - 2), columns = shape_.back();
    return MatrixView<T>(data<T>() + slice * rows * columns, rows, columns);
  }

 private:
  struct Release {
    Release() : borrowed(false) {}
    explicit Release(std::shared_ptr<const void> kept) : owner(std::move(kept)), borrowed(true) {}
    std::shared_ptr<const void> owner;  ///< of borrowed memory
    bool borrowed;
    void operator()(std::byte* memory) const;
  };
  struct OnDevice {
    StridedArray array;
    std::shared_ptr<const DeviceMemory> memory;
    std::shared_ptr<const void> owner;
  };
  void check_type(ElementType wanted) const;
  void check_on_host() const;

  ElementType type_ = ElementType::float32;
  std::vector<Index> shape_;
  Index size_ = 0;
  std::unique_ptr<std::byte, Release> memory_;
  std::shared_ptr<const OnDevice> device_;
};

}  // namespace laprox
