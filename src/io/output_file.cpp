#include "io/output_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include "laprox/error.h"

namespace laprox::io {

namespace {

void check_replaceable(const std::filesystem::path& path, bool replace) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) return;
  if (!std::filesystem::is_regular_file(status)) {
    throw FileError(fmt::format("{}: exists and is not a regular file; choose another name", path.string()));
  }
  if (!replace) throw UsageError(fmt::format("{}: exists already; give --force to replace it", path.string()));
}

}  // namespace

OutputFile::OutputFile(const std::filesystem::path& path, bool replace)
    : path_(path), temporary_(fmt::format("{}.{}.part", path.string(), getpid())), replace_(replace) {
  check_replaceable(path, replace);
  H5::Exception::dontPrint();
  try {
    file_ = H5::H5File(temporary_.string(), H5F_ACC_TRUNC);
  } catch (const H5::Exception&) {
    throw FileError(
        fmt::format("{}: cannot be written; does the folder exist, and may you write there?", path.string()));
  }
}

OutputFile::~OutputFile() {
  if (committed_) return;
  file_.close();
  std::error_code ignored;
  std::filesystem::remove(temporary_, ignored);
}

void OutputFile::commit() {
  try {
    file_.flush(H5F_SCOPE_GLOBAL);
    file_.close();
  } catch (const H5::Exception& error) {
    throw FileError(fmt::format("{}: cannot be written ({}); is the disk full?", path_.string(), error.getDetailMsg()));
  }
  check_replaceable(path_, replace_);  // somebody may have made it meanwhile
  std::error_code error;
  std::filesystem::rename(temporary_, path_, error);
  if (error) throw FileError(fmt::format("{}: cannot be written ({})", path_.string(), error.message()));
  committed_ = true;
}

H5::DSetCreatPropList dataset_properties() {
  H5::DSetCreatPropList properties;
  if (H5Pset_obj_track_times(properties.getId(), 0) < 0) {
    throw H5::PropListIException("H5Pset_obj_track_times", "a dataset's properties cannot be set");
  }
  return properties;
}

void write_attribute(H5::H5Object& owner, const std::string& name, const std::string& value) {
  H5::StrType type(H5::PredType::C_S1, H5T_VARIABLE);
  type.setCset(H5T_CSET_UTF8);
  owner.createAttribute(name, type, H5::DataSpace(H5S_SCALAR)).write(type, value);
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
