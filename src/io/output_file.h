#pragma once

#include <H5Cpp.h>

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace laprox::io {

/// Whether a file that exists may be replaced: only by one of the same kind, which its root attribute format says.
struct Replacement {
  bool allowed;
  std::string_view format;  ///< of the file that is written
};

/// An HDF5 file that appears under its name only when it is complete: it is written beside it and renamed by commit().
/// A file that was not committed is removed, also where a signal ends the program (temporary.h).
class OutputFile {
 public:
  /// Throws FileError where `path` is no regular file or one of another kind, or its folder cannot be written;
  /// UsageError where it is one of `inputs`, or exists and may not be replaced.
  OutputFile(const std::filesystem::path& path, Replacement replace,
             std::span<const std::filesystem::path> inputs = {});
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  H5::H5File& file() { return file_; }
  /// Throws FileError where something could not be written so far: HDF5 does not say so (output_driver.h).
  void check_written() const;
  /// Throws FileError where the data cannot be stored (a full disk, say); nothing is left behind then.
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  Replacement replace_;
  bool committed_ = false, closing_failed_ = false;
  H5::H5File file_;
};

/// What OutputFile's constructor refuses of a name, without making anything.
void check_output(const std::filesystem::path& path, Replacement replace,
                  std::span<const std::filesystem::path> inputs);

/// What datasets are created with: they do not store when, so that equal contents are equal bytes.
H5::DSetCreatPropList dataset_properties();

/// A text of fixed length: HDF5 keeps texts of variable length apart, where damage to them is hard to contain.
H5::StrType text_type(std::size_t size);

void write_attribute(H5::H5Object& owner, const std::string& name, const std::string& value);
void write_attribute(H5::H5Object& owner, const std::string& name, long long value);
void write_attribute(H5::H5Object& owner, const std::string& name, double value);

}  // namespace laprox::io
