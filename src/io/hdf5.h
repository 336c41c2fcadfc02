#pragma once

#include <H5Cpp.h>

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/text.h"
#include "io/file_state.h"
#include "io/packed_chunks.h"
#include "laprox/tensor.h"

namespace laprox::io {

/// The HDF5 types of the dump's float16, in file and memory order.
H5::FloatType float16_type();

/// A dataset of real numbers as it lies in a file.
struct StoredArray {
  H5::DataSet dataset;
  ElementType type{};
  std::vector<Index> shape;
  std::optional<PackedChunks> packed;  ///< where its chunks are not left to HDF5
};

/// Reads the objects of one file and turns every surprise into a DumpError that names file, object, expectation and
/// find. Only what lies in the file itself and was written is read (soundness.h).
class Hdf5Reader {
 public:
  /// `kind` says what the file should be, for messages: "a laprox dump". The file is rehearsed first (rehearsal.h).
  /// `threads`: how many work on one array: inflate its chunks, look at its values.
  Hdf5Reader(const std::filesystem::path& path, const std::string& kind, int threads = 1);

  const std::string& path() const { return path_; }
  int threads() const { return threads_; }
  std::uint64_t file_size() const { return state_.size; }
  /// Refuses a file that is no longer the one that was opened.
  void check_unchanged() const;
  /// Closes the file until it is read again: an open one takes a descriptor and about 1 MB. Refuses it then if it has
  /// changed.
  void rest() const;

  bool has(const std::string& object) const;
  H5::Group group(const std::string& name) const;
  H5::DataSet dataset(const std::string& name) const;
  std::vector<std::string> members(const std::string& group) const;
  std::vector<std::string> attributes(const H5::H5Object& owner) const;
  std::vector<Index> shape(const H5::DataSet& dataset) const;

  /// An array of float16, bfloat16, float32 or float64. What its chunks inflate to is checked when it is read, where
  /// this library inflates them (packed_chunks.h).
  StoredArray array(const std::string& name) const;
  /// A whole array of rank 1 or 2 as float64, checked to be finite.
  std::vector<double> reals(const std::string& name) const;
  /// A rank-1 array of integers.
  std::vector<Index> integers(const std::string& name) const;
  /// A rank-1 array of strings, of fixed or of variable length; control characters are escaped.
  std::vector<std::string> strings(const std::string& name) const;
  /// How many elements a rank-1 array has, without reading them.
  Index extent(const std::string& name) const;

  /// Attributes of the object; nothing where it has none of that name. Control characters in texts are escaped.
  std::optional<std::string> text_attribute(const H5::H5Object& owner, const std::string& owner_name,
                                            const std::string& name) const;
  std::optional<long long> integer_attribute(const H5::H5Object& owner, const std::string& owner_name,
                                             const std::string& name) const;
  std::optional<double> real_attribute(const H5::H5Object& owner, const std::string& owner_name,
                                       const std::string& name) const;

  /// Reads elements as they are stored: everything, or rows [first, first + count) of dimension 1 of a rank-3 array.
  void read_raw(const StoredArray& array, const std::string& name, std::byte* target) const;
  void read_raw_rows(const StoredArray& array, const std::string& name, Index first, Index count,
                     std::byte* target) const;

  [[noreturn]] void refuse(const std::string& object, const std::string& expected, const std::string& found,
                           const std::string& advice = {}) const;

 private:
  std::optional<H5::Attribute> scalar_attribute(const H5::H5Object& owner, const std::string& owner_name,
                                                const std::string& name, H5T_class_t type_class,
                                                const std::string& expected) const;
  ElementType element_type(const H5::DataSet& dataset, const std::string& name) const;
  void check_in_file(hid_t object, const std::string& name) const;
  const H5::H5File& file() const;
  /// The dataset, of which nothing is known yet but its extents.
  H5::DataSet open_dataset(const std::string& name) const;

  std::string path_;
  std::string kind_;
  FileState state_;
  int threads_;
  mutable std::optional<H5::H5File> file_;  ///< nothing while it rests
  mutable unsigned long file_number_ = 0;   ///< HDF5's number of this file, which an object in another one lacks
  mutable std::set<std::string> sound_;     ///< datasets whose storage was checked
  mutable std::set<std::string> indexed_;   ///< arrays whose chunks are known to be there
};

using laprox::describe;
/// "a 16-bit integer", for messages.
std::string describe_type(const H5::DataType& type);

}  // namespace laprox::io
