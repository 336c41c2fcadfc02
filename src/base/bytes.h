#pragma once

#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "laprox/error.h"

namespace laprox {

/// Writes numbers, plain structs and lists of them one behind the other, for another process of the same program: bits
/// stay what they are.
class ByteWriter {
 public:
  template <class T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  template <class T>
  void put(const std::vector<T>& values) {
    put(values.size());
    if constexpr (std::is_trivially_copyable_v<T>) {
      bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    } else {
      for (const T& value : values) put(value);
    }
  }
  void put(const std::string& text) { put(std::vector<char>(text.begin(), text.end())); }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

/// Reads them back in the same order. `bytes` must outlive it.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : bytes_(bytes) {}

  bool at_end() const { return bytes_.empty(); }
  template <class T>
  void get(T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    take(&value, sizeof(T));
  }
  template <class T>
  void get(std::vector<T>& values) {
    values.resize(get<std::size_t>());
    if constexpr (std::is_trivially_copyable_v<T>) {
      take(values.data(), values.size() * sizeof(T));
    } else {
      for (T& value : values) get(value);
    }
  }
  void get(std::string& text) {
    const auto characters = get<std::vector<char>>();
    text.assign(characters.begin(), characters.end());
  }
  template <class T>
  T get() {
    T value;
    get(value);
    return value;
  }

 private:
  void take(void* target, std::size_t size) {
    require(size <= bytes_.size(), "what is read was written");
    if (size > 0) std::memcpy(target, bytes_.data(), size);
    bytes_.remove_prefix(size);
  }

  std::string_view bytes_;
};

}  // namespace laprox
