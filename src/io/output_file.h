#pragma once

#include <H5Cpp.h>

#include <filesystem>
#include <string>

namespace laprox::io {

/// An HDF5 file that appears under its name only when it is complete: it is written beside it and renamed by commit().
/// A file that was not committed is removed.
class OutputFile {
 public:
  /// Throws FileError where `path` exists and not `replace`, or its folder cannot be written.
  OutputFile(const std::filesystem::path& path, bool replace);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  H5::H5File& file() { return file_; }
  /// Throws FileError where the data cannot be stored (a full disk, say); nothing is left behind then.
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  bool replace_, committed_ = false;
  H5::H5File file_;
};

/// What datasets are created with: they do not store when, so that equal contents are equal bytes.
H5::DSetCreatPropList dataset_properties();

void write_attribute(H5::H5Object& owner, const std::string& name, const std::string& value);
void write_attribute(H5::H5Object& owner, const std::string& name, long long value);
void write_attribute(H5::H5Object& owner, const std::string& name, double value);

}  // namespace laprox::io
