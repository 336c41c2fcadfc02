#include "io/heap_check.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

namespace laprox::io {

namespace {

// The HDF5 File Format Specification Version 3.0, section III.E: "Disk Format: Level 1E - Global Heap".
constexpr std::size_t kCountSize = 4, kIndexSize = 4;  // of a list in a dataset: length, address, number in the heap
constexpr std::size_t kCollectionHeader = 8;  // the signature, a version and three reserved bytes; then its size
constexpr std::size_t kObjectHeader = 8;      // number, references, four reserved bytes; then its size
constexpr std::size_t kSmallestCollection = 4096;

/// Headers and objects begin at multiples of 8 bytes in a collection.
constexpr std::uint64_t aligned(std::uint64_t size) { return (size + 7) / 8 * 8; }

/// HDF5 gives lists as they lie in the file if they are read as opaque bytes by this conversion, which changes nothing.
herr_t keep_bytes(hid_t source, hid_t target, H5T_cdata_t* data, std::size_t, std::size_t, std::size_t, void*, void*,
                  hid_t) {
  data->need_bkg = H5T_BKG_NO;
  return data->command != H5T_CONV_INIT || H5Tget_size(target) == H5Tget_size(source) ? 0 : -1;
}

class HeapCheck {
 public:
  HeapCheck(const Hdf5Reader& reader, hid_t id, const std::string& object)
      : reader_(reader), id_(id), object_(object), file_(H5Iget_file_id(id)) {
    const hid_t properties = H5Fget_create_plist(file_);
    H5Pget_sizes(properties, &address_size_, &length_size_);
    H5Pget_userblock(properties, &base_);
    H5Pclose(properties);
  }
  ~HeapCheck() { H5Fclose(file_); }
  HeapCheck(const HeapCheck&) = delete;
  HeapCheck& operator=(const HeapCheck&) = delete;

  void run(std::size_t element) {
    const std::size_t stride = kCountSize + address_size_ + kIndexSize;
    const std::vector<unsigned char> lists = stored_lists(stride);
    for (std::size_t at = 0; at < lists.size(); at += stride) {
      const std::uint64_t length = number(&lists[at], kCountSize),
                          address = number(&lists[at + kCountSize], address_size_),
                          index = number(&lists[at + kCountSize + address_size_], kIndexSize);
      if (address == 0) continue;  // a list that was never written, or an empty one
      const auto& sizes = collection(address);
      const auto found = sizes.find(index);
      if (found == sizes.end()) refuse(fmt::format("one that lacks object {}", index));
      if (found->second != length * element) {
        refuse(fmt::format("{} bytes where {} are declared", found->second, length * element));
      }
    }
  }

 private:
  [[noreturn]] void refuse(const std::string& found) const {
    reader_.refuse(object_, "text or lists of variable length in a sound heap of the file", found,
                   "the file is damaged; copy it again, or make it again");
  }

  /// Integers of a file are little-endian, of whatever size.
  static std::uint64_t number(const unsigned char* bytes, std::size_t size) {
    std::uint64_t value = 0;
    for (std::size_t i = size; i-- > 0;) value = value << 8U | bytes[i];
    return value;
  }

  /// Length, address and number of every list, as they are stored.
  std::vector<unsigned char> stored_lists(std::size_t stride) const {
    const bool attribute = H5Iget_type(id_) == H5I_ATTR;
    const hid_t opaque = H5Tcreate(H5T_OPAQUE, stride), space = attribute ? H5Aget_space(id_) : H5Dget_space(id_),
                list = H5Tvlen_create(H5T_NATIVE_INT);
    static const bool registered = H5Tregister(H5T_PERS_SOFT, "lists as stored", list, opaque, keep_bytes) >= 0;
    const hssize_t count = H5Sget_simple_extent_npoints(space);
    std::vector<unsigned char> lists(count > 0 ? static_cast<std::size_t>(count) * stride : 0);
    bool read = registered;
    if (read && !lists.empty()) {
      read = (attribute ? H5Aread(id_, opaque, lists.data())
                        : H5Dread(id_, opaque, H5S_ALL, H5S_ALL, H5P_DEFAULT, lists.data())) >= 0;
    }
    H5Sclose(space);
    for (const hid_t each : {opaque, list}) H5Tclose(each);
    if (!read) refuse("lists that cannot be read");
    return lists;
  }

  std::vector<unsigned char> bytes(std::uint64_t address, std::uint64_t size) const {
    void* handle = nullptr;
    const std::uint64_t end = reader_.file_size();
    if (H5Fget_vfd_handle(file_, H5P_DEFAULT, &handle) < 0) refuse("a file without a descriptor");
    if (base_ > end || address > end - base_ || size > end - base_ - address) refuse("a heap beyond the file's end");
    std::vector<unsigned char> read(size);
    for (std::size_t done = 0; done < size;) {
      const ssize_t n = pread(*static_cast<int*>(handle), read.data() + done, size - done,
                              static_cast<off_t>(base_ + address + done));
      if (n <= 0) refuse("a heap that cannot be read");
      done += static_cast<std::size_t>(n);
    }
    return read;
  }

  /// The sizes of a collection's objects by their numbers.
  const std::map<std::uint64_t, std::uint64_t>& collection(std::uint64_t address) {
    const auto [known, is_new] = collections_.try_emplace(address);
    if (!is_new) return known->second;
    const std::size_t header = aligned(kCollectionHeader + length_size_),
                      object = aligned(kObjectHeader + length_size_);
    const std::vector<unsigned char> start = bytes(address, header);
    const std::uint64_t size = number(&start[kCollectionHeader], length_size_);
    if (std::memcmp(start.data(), "GCOL\1", 5) != 0 || size < kSmallestCollection) refuse("none at its address");
    const std::vector<unsigned char> heap = bytes(address, size);
    std::uint64_t at = header;
    while (size - at >= object) {
      const std::uint64_t index = number(&heap[at], 2), length = number(&heap[at + kObjectHeader], length_size_);
      if (index == 0) {  // the free space, which is the last object and counts its header
        if (length != size - at) refuse("one whose free space does not end with it");
        break;
      }
      if (length > size - at - object) refuse(fmt::format("object {} of {} bytes in one of {}", index, length, size));
      if (!known->second.emplace(index, length).second) refuse(fmt::format("object {} twice", index));
      at += object + aligned(length);
      if (at > size) refuse(fmt::format("object {} beyond its end", index));
    }
    return known->second;
  }

  const Hdf5Reader& reader_;
  const hid_t id_;
  const std::string& object_;
  const hid_t file_;
  std::size_t address_size_ = 0, length_size_ = 0;
  hsize_t base_ = 0;
  std::map<std::uint64_t, std::map<std::uint64_t, std::uint64_t>> collections_;
};

/// Bytes of an element of the lists; 1 for text.
std::size_t element_size(hid_t id) {
  const hid_t type = H5Iget_type(id) == H5I_ATTR ? H5Aget_type(id) : H5Dget_type(id);
  std::size_t size = 1;
  if (H5Tget_class(type) == H5T_VLEN) {
    const hid_t element = H5Tget_super(type);
    size = H5Tget_size(element);
    H5Tclose(element);
  }
  H5Tclose(type);
  return size;
}

}  // namespace

void check_heap(const Hdf5Reader& reader, hid_t id, const std::string& object) {
  HeapCheck(reader, id, object).run(element_size(id));
}

}  // namespace laprox::io
