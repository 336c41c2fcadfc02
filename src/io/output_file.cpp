#include "io/output_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "io/dump_layout.h"
#include "io/hdf5.h"
#include "io/output_driver.h"
#include "io/report_layout.h"
#include "io/score_layout.h"
#include "io/temporary.h"
#include "laprox/error.h"

namespace laprox::io {

namespace {

constexpr std::size_t kLongText = 60000;  // what fits into an attribute that lies with its object

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::string kind_of(std::string_view format) {
  if (format == kDumpFormat) return "a laprox dump";
  if (format == kReportFormat) return "a laprox report";
  if (format == kScoreFormat) return "a file of laprox scores";
  return "another HDF5 file";
}

/// The kind of a file that is there; nothing where it cannot be read.
std::optional<std::string> kind_of_existing(const std::filesystem::path& path) {
  try {
    const Hdf5Reader reader(path, "an HDF5 file");
    return kind_of(reader.text_attribute(reader.group("/"), "/", "format").value_or(""));
  } catch (const Error&) {
    return std::nullopt;
  }
}

void check_kind(const std::filesystem::path& path, std::string_view format) {
  std::error_code error;
  if (std::filesystem::file_size(path, error) == 0) return;
  const std::string wanted = kind_of(format);
  const auto found = kind_of_existing(path);
  if (found == wanted) return;
  throw FileError(fmt::format("{}: is {}, and --force replaces only {}; choose another name, or delete it first",
                              path.string(), found.value_or("no sound HDF5 file"), wanted));
}

}  // namespace

void check_output(const std::filesystem::path& path, Replacement replace,
                  std::span<const std::filesystem::path> inputs) {
  if (path.empty()) throw UsageError("the output has an empty name; give it one, for example -o report.h5");
  std::error_code error;
  if (!std::filesystem::is_directory(folder_of(path), error)) {
    throw FileError(fmt::format("{}: there is no folder {}; make it first", path.string(), folder_of(path).string()));
  }
  const auto status = std::filesystem::symlink_status(path, error);
  if (!std::filesystem::exists(status)) return;
  for (const std::filesystem::path& input : inputs) {
    if (std::filesystem::equivalent(path, input, error)) {
      throw UsageError(fmt::format("{}: is the input {} itself, which would be lost; choose another name",
                                   path.string(), input.string()));
    }
  }
  if (std::filesystem::is_symlink(status)) {
    throw FileError(
        fmt::format("{}: is a link; name the file that it leads to, or choose another name", path.string()));
  }
  if (!std::filesystem::is_regular_file(status)) {
    throw FileError(fmt::format("{}: exists and is not a regular file; choose another name", path.string()));
  }
  if (!replace.allowed) throw UsageError(fmt::format("{}: exists already; give --force to replace it", path.string()));
  check_kind(path, replace.format);
}

OutputFile::OutputFile(const std::filesystem::path& path, Replacement replace,
                       std::span<const std::filesystem::path> inputs)
    : path_(path), replace_(replace) {
  check_output(path, replace, inputs);
  temporary_ = make_temporary(path);
  H5::Exception::dontPrint();
  try {
    begin_output();
    file_ = H5::H5File(temporary_.string(), H5F_ACC_TRUNC, H5::FileCreatPropList::DEFAULT, output_access());
  } catch (const H5::Exception&) {
    remove_temporary(temporary_);
    throw FileError(fmt::format("{}: cannot be written; is the disk full?", path.string()));
  }
}

OutputFile::~OutputFile() {
  if (committed_) return;
  remove_temporary(temporary_);
  if (!closing_failed_) {
    try {
      file_.close();
      return;
    } catch (const H5::Exception&) {  // what could not be written is thrown away in any case
    }
  }
  // A close that fails frees the file all the same but keeps its handle, and the next one would use what is freed. One
  // more reference, which nobody gives back, keeps the member's destructor from closing again.
  H5Iinc_ref(file_.getId());
}

void OutputFile::check_written() const {
  if (const int reason = failed_write()) {
    throw FileError(fmt::format("{}: cannot be written: {}", path_.string(), std::strerror(reason)));
  }
}

void OutputFile::commit() {
  try {
    file_.flush(H5F_SCOPE_GLOBAL);
    file_.close();
  } catch (const H5::Exception& error) {
    closing_failed_ = true;
    throw FileError(fmt::format("{}: cannot be written ({}); is the disk full?", path_.string(), error.getDetailMsg()));
  }
  check_written();
  sync_temporary(temporary_, path_);
  check_output(path_, replace_, {});  // somebody may have made it meanwhile
  keep_temporary(temporary_, path_);
  committed_ = true;
}

H5::DSetCreatPropList dataset_properties() {
  H5::DSetCreatPropList properties;
  if (H5Pset_obj_track_times(properties.getId(), 0) < 0) {
    throw H5::PropListIException("H5Pset_obj_track_times", "a dataset's properties cannot be set");
  }
  return properties;
}

H5::StrType text_type(std::size_t size) {
  H5::StrType type(H5::PredType::C_S1, std::max<std::size_t>(1, size));
  type.setCset(H5T_CSET_UTF8);
  type.setStrpad(H5T_STR_NULLPAD);
  return type;
}

void write_attribute(H5::H5Object& owner, const std::string& name, const std::string& value) {
  if (value.size() >= kLongText) {
    H5::StrType type(H5::PredType::C_S1, H5T_VARIABLE);
    type.setCset(H5T_CSET_UTF8);
    owner.createAttribute(name, type, H5::DataSpace(H5S_SCALAR)).write(type, value);
    return;
  }
  const H5::StrType type = text_type(value.size());
  const std::string padded = value + '\0';  // an empty text has one byte all the same
  owner.createAttribute(name, type, H5::DataSpace(H5S_SCALAR)).write(type, static_cast<const void*>(padded.data()));
}

void write_attribute(H5::H5Object& owner, const std::string& name, long long value) {
  owner.createAttribute(name, H5::PredType::STD_I64LE, H5::DataSpace(H5S_SCALAR))
      .write(H5::PredType::NATIVE_LLONG, &value);
}

void write_attribute(H5::H5Object& owner, const std::string& name, double value) {
  owner.createAttribute(name, H5::PredType::IEEE_F64LE, H5::DataSpace(H5S_SCALAR))
      .write(H5::PredType::NATIVE_DOUBLE, &value);
}

}  // namespace laprox::io
