#include "io/hdf5.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/convert.h"
#include "base/text.h"
#include "io/heap_check.h"
#include "io/rehearsal.h"
#include "io/soundness.h"
#include "laprox/error.h"

namespace laprox::io {

namespace {

/// Elements beyond which an array's declared shape is a fault of the file: no tensor is so large, and products of sizes
/// below it do not overflow.
constexpr double kMostElements = 0x1p48;

/// What HDF5 says of the call that failed last, its own words of every level.
std::string hdf5_words() {
  std::string words;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* error, void* out) -> herr_t {
        if (error->desc) *static_cast<std::string*>(out) += std::string(error->desc) + "; ";
        return 0;
      },
      &words);
  return words;
}

H5::H5File open_file(const std::filesystem::path& path, const std::string& kind) {
  try {
    return H5::H5File(path.string(), H5F_ACC_RDONLY);
  } catch (const H5::Exception&) {
    const std::string words = hdf5_words();
    if (words.find("lock file") != std::string::npos) {
      throw FileError(fmt::format(
          "{}: cannot be locked for reading: it is open for writing elsewhere, or its file system has no locks (NFS, "
          "Lustre); then set HDF5_USE_FILE_LOCKING=FALSE",
          path.string()));
    }
    if (words.find("Permission denied") != std::string::npos) {
      throw FileError(fmt::format("{}: cannot be read: permission denied", path.string()));
    }
    throw DumpError(path.string(), "file", kind + " (HDF5)", "a file that HDF5 cannot open",
                    "it may be of another kind, or cut short");
  }
}

/// The IEEE layouts that have a name here; the byte order is free.
std::optional<ElementType> ieee_type(const H5::FloatType& type) {
  std::size_t sign = 0, exponent = 0, exponent_size = 0, mantissa = 0, mantissa_size = 0;
  type.getFields(sign, exponent, exponent_size, mantissa, mantissa_size);
  if (mantissa != 0 || exponent != mantissa_size || sign + 1 != type.getSize() * 8) return std::nullopt;
  if (type.getSize() == 2 && mantissa_size == 10 && type.getEbias() == 15) return ElementType::float16;
  if (type.getSize() == 4 && mantissa_size == 23 && type.getEbias() == 127) return ElementType::float32;
  if (type.getSize() == 8 && mantissa_size == 52 && type.getEbias() == 1023) return ElementType::float64;
  return std::nullopt;
}

H5::DataType memory_type(ElementType type) {
  switch (type) {
    case ElementType::float16:
      return float16_type();
    case ElementType::bfloat16:
      return H5::PredType::NATIVE_UINT16;
    case ElementType::float32:
      return H5::PredType::NATIVE_FLOAT;
    case ElementType::float64:
      return H5::PredType::NATIVE_DOUBLE;
  }
  throw Bug("unknown element type");
}

}  // namespace

H5::FloatType float16_type() {
  H5::FloatType type(H5::PredType::IEEE_F32LE);
  type.setFields(15, 10, 5, 0, 10);
  type.setSize(2);
  type.setEbias(15);
  return type;
}

std::string describe_type(const H5::DataType& type) {
  const std::size_t bits = type.getSize() * 8;
  switch (type.getClass()) {
    case H5T_INTEGER:
      return fmt::format("a {}-bit integer", bits);
    case H5T_FLOAT:
      return fmt::format("a {}-bit float", bits);
    case H5T_STRING:
      return "a string";
    case H5T_COMPOUND:
      return "a compound type";
    case H5T_ENUM:
      return "an enumeration";
    default:
      return "another type";
  }
}

Hdf5Reader::Hdf5Reader(const std::filesystem::path& path, const std::string& kind, int threads)
    : path_(path.string()), kind_(kind), state_(require_regular_file(path, kind)), threads_(threads) {
  H5::Exception::dontPrint();
  rehearse(path, kind);
  file();
}

const H5::H5File& Hdf5Reader::file() const {
  if (!file_) {
    check_unchanged();
    file_ = open_file(path_, kind_);
    H5O_info_t info;
    if (H5Oget_info2(file_->getId(), &info, H5O_INFO_BASIC) >= 0) file_number_ = info.fileno;
  }
  return *file_;
}

void Hdf5Reader::rest() const { file_.reset(); }

void Hdf5Reader::check_unchanged() const {
  const auto now = regular_file(path_);
  if (now != state_) {
    refuse("file", "the file as it was opened", now ? "one that has changed since" : "nothing",
           "something writes to it while it is read; nothing was computed from it");
  }
}

/// A link may lead out of the file, and then nothing that is known of this file holds for what is read.
void Hdf5Reader::check_in_file(hid_t object, const std::string& name) const {
  H5O_info_t info;
  if (H5Oget_info2(object, &info, H5O_INFO_BASIC) < 0) refuse(name, "a readable object", "a damaged one");
  if (info.fileno != file_number_) {
    refuse(name, "an object in this file", "a link to another file",
           "copy the data into the file, for example with h5repack");
  }
}

void Hdf5Reader::refuse(const std::string& object, const std::string& expected, const std::string& found,
                        const std::string& advice) const {
  throw DumpError(path_, object, expected, found, advice);
}

bool Hdf5Reader::has(const std::string& object) const {
  try {
    return file().nameExists(object) && file().childObjType(object) != H5O_TYPE_UNKNOWN;
  } catch (const H5::Exception&) {
    return false;  // a parent is missing, or a link leads nowhere
  }
}

H5::Group Hdf5Reader::group(const std::string& name) const {
  if (!has(name)) refuse(name, "a group", "nothing");
  if (file().childObjType(name) != H5O_TYPE_GROUP) refuse(name, "a group", "a dataset");
  H5::Group found = file().openGroup(name);
  check_in_file(found.getId(), name);
  return found;
}

H5::DataSet Hdf5Reader::open_dataset(const std::string& name) const {
  if (!has(name)) refuse(name, "a dataset", "nothing");
  if (file().childObjType(name) != H5O_TYPE_DATASET) refuse(name, "a dataset", "a group");
  H5::DataSet found = file().openDataSet(name);
  check_in_file(found.getId(), name);
  double elements = 1;
  for (Index extent : shape(found)) elements *= static_cast<double>(extent);
  if (elements > kMostElements) refuse(name, "an array that memory can hold", "shape " + describe(shape(found)));
  return found;
}

H5::DataSet Hdf5Reader::dataset(const std::string& name) const {
  const H5::DataSet found = open_dataset(name);
  if (sound_.insert(name).second) check_stored(*this, found, name);
  return found;
}

std::vector<std::string> Hdf5Reader::members(const std::string& name) const {
  const H5::Group parent = group(name);
  std::vector<std::string> names;
  for (hsize_t i = 0; i < parent.getNumObjs(); ++i) names.push_back(parent.getObjnameByIdx(i));
  return names;
}

std::vector<std::string> Hdf5Reader::attributes(const H5::H5Object& owner) const {
  std::vector<std::string> names;
  for (int i = 0; i < owner.getNumAttrs(); ++i)
    names.push_back(owner.openAttribute(static_cast<unsigned>(i)).getName());
  return names;
}

std::vector<Index> Hdf5Reader::shape(const H5::DataSet& dataset) const {
  const H5::DataSpace space = dataset.getSpace();
  if (H5Sget_simple_extent_type(space.getId()) != H5S_SIMPLE) return {};
  std::vector<hsize_t> extents(static_cast<std::size_t>(space.getSimpleExtentNdims()));
  space.getSimpleExtentDims(extents.data());
  return {extents.begin(), extents.end()};
}

ElementType Hdf5Reader::element_type(const H5::DataSet& dataset, const std::string& name) const {
  const H5::DataType type = dataset.getDataType();
  if (type.getClass() == H5T_FLOAT) {
    const auto known = ieee_type(dataset.getFloatType());
    const auto said = known ? text_attribute(dataset, name, "dtype") : std::nullopt;
    if (said && *said != to_string(*known)) {
      refuse(name + " attribute dtype", fmt::format("\"{}\", as the data is stored, or nothing", to_string(*known)),
             fmt::format("\"{}\"", *said));
    }
    if (known) return *known;
  }
  if (type.getClass() == H5T_INTEGER && type.getSize() == 2 && dataset.getIntType().getSign() == H5T_SGN_NONE &&
      text_attribute(dataset, name, "dtype") == "bfloat16") {
    return ElementType::bfloat16;
  }
  refuse(name, "float16, float32, float64, or uint16 with the attribute dtype = \"bfloat16\"",
         describe_type(type) + (type.getClass() == H5T_FLOAT ? " that is not IEEE" : ""));
}

StoredArray Hdf5Reader::array(const std::string& name) const {
  const H5::DataSet stored = open_dataset(name);
  const ElementType type = element_type(stored, name);
  const auto packed = packed_chunks(stored, memory_type(type));
  if (!packed) return {dataset(name), type, shape(stored), packed};
  if (indexed_.insert(name).second) check_stored(*this, stored, name, &*packed);
  return {stored, type, shape(stored), packed};
}

std::vector<double> Hdf5Reader::reals(const std::string& name) const {
  const StoredArray stored = array(name);
  Index count = stored.shape.empty() ? 0 : 1;
  for (Index extent : stored.shape) count *= extent;
  std::vector<std::byte> raw(static_cast<std::size_t>(count * size_of(stored.type)));
  std::vector<double> values(static_cast<std::size_t>(count));
  if (count == 0) return values;
  read_raw(stored, name, raw.data());
  convert(raw.data(), stored.type, values.data(), count);
  if (const auto bad = first_non_finite(values.data(), count)) {
    refuse(name, "finite values", fmt::format("{} at element {}", values[*bad], *bad));
  }
  return values;
}

std::vector<Index> Hdf5Reader::integers(const std::string& name) const {
  const H5::DataSet stored = dataset(name);
  if (stored.getTypeClass() != H5T_INTEGER) refuse(name, "int64", describe_type(stored.getDataType()));
  const std::vector<Index> extents = shape(stored);
  if (extents.size() != 1) refuse(name, "an array of rank 1", fmt::format("rank {}", extents.size()));
  std::vector<std::int64_t> values(static_cast<std::size_t>(extents[0]));
  H5::Exception::dontPrint();
  try {
    if (!values.empty()) stored.read(values.data(), H5::PredType::NATIVE_INT64);
  } catch (const H5::Exception& error) {
    refuse(name, "readable data", error.getDetailMsg());
  }
  return {values.begin(), values.end()};
}

Index Hdf5Reader::extent(const std::string& name) const {
  const std::vector<Index> extents = shape(dataset(name));
  if (extents.size() != 1) refuse(name, "an array of rank 1", fmt::format("rank {}", extents.size()));
  return extents[0];
}

std::vector<std::string> Hdf5Reader::strings(const std::string& name) const {
  const H5::DataSet stored = dataset(name);
  const std::vector<Index> extents = shape(stored);
  if (stored.getTypeClass() != H5T_STRING || extents.size() != 1) {
    refuse(name, "a list of strings",
           fmt::format("{} of rank {}", describe_type(stored.getDataType()), extents.size()));
  }
  std::vector<std::string> values(static_cast<std::size_t>(extents[0]));
  if (values.empty()) return values;
  const H5::StrType type = stored.getStrType();
  if (!type.isVariableStr()) {
    std::vector<char> block(values.size() * type.getSize());
    stored.read(block.data(), type);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const char* text = block.data() + i * type.getSize();
      values[i] = printable({text, strnlen(text, type.getSize())});
    }
    return values;
  }
  check_heap(*this, stored.getId(), name);
  std::vector<char*> pointers(values.size());
  stored.read(pointers.data(), type);
  bool written = true;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (pointers[i]) values[i] = printable(pointers[i]);
    written = written && pointers[i];
  }
  H5::DataSet::vlenReclaim(pointers.data(), type, stored.getSpace());
  if (!written) refuse(name, "strings", "a string that was never written");
  return values;
}

void Hdf5Reader::read_raw(const StoredArray& array, const std::string& name, std::byte* target) const {
  if (array.packed) {
    const Slab whole{{}, array.packed->shape};
    return read_packed(*this, array.dataset, name, *array.packed, whole, threads_, target);
  }
  H5::Exception::dontPrint();
  try {
    array.dataset.read(target, memory_type(array.type));
  } catch (const H5::Exception& error) {
    refuse(name, "readable data", "a damaged or cut-off file (" + error.getDetailMsg() + ")");
  }
}

void Hdf5Reader::read_raw_rows(const StoredArray& array, const std::string& name, Index first, Index count,
                               std::byte* target) const {
  if (array.packed) {
    const Slab rows{{0, first, 0}, {array.shape[0], count, array.shape[2]}};
    return read_packed(*this, array.dataset, name, *array.packed, rows, threads_, target);
  }
  H5::Exception::dontPrint();  // HDF5 knows this for each thread by itself
  const auto extent = [](Index n) { return static_cast<hsize_t>(n); };
  const std::array<hsize_t, 3> start{0, extent(first), 0};
  const std::array<hsize_t, 3> block{extent(array.shape[0]), extent(count), extent(array.shape[2])};
  try {
    const H5::DataSpace memory(3, block.data());
    const H5::DataSpace file = array.dataset.getSpace();
    file.selectHyperslab(H5S_SELECT_SET, block.data(), start.data());
    array.dataset.read(target, memory_type(array.type), memory, file);
  } catch (const H5::Exception& error) {
    refuse(name, "readable data", "a damaged or cut-off file (" + error.getDetailMsg() + ")");
  }
}

}  // namespace laprox::io
