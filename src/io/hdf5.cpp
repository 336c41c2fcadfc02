#include "io/hdf5.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "base/convert.h"
#include "laprox/error.h"

namespace laprox::io {

namespace {

H5::H5File open(const std::filesystem::path& path, const std::string& kind) {
  H5::Exception::dontPrint();
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) throw FileError(fmt::format("{}: no such file", path.string()));
  if (std::filesystem::is_directory(status)) {
    throw DumpError(path.string(), "file", kind + " (HDF5)", "a directory");
  }
  try {
    return H5::H5File(path.string(), H5F_ACC_RDONLY);
  } catch (const H5::Exception&) {
    throw DumpError(path.string(), "file", kind + " (HDF5)", "a file that HDF5 cannot open",
                    "it may be of another kind, cut short, unreadable for you, or open for writing elsewhere");
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

std::string describe(const std::vector<Index>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Hdf5Reader::Hdf5Reader(const std::filesystem::path& path, const std::string& kind)
    : path_(path.string()), file_(open(path, kind)) {}

void Hdf5Reader::refuse(const std::string& object, const std::string& expected, const std::string& found,
                        const std::string& advice) const {
  throw DumpError(path_, object, expected, found, advice);
}

bool Hdf5Reader::has(const std::string& object) const {
  try {
    return file_.nameExists(object) && file_.childObjType(object) != H5O_TYPE_UNKNOWN;
  } catch (const H5::Exception&) {
    return false;  // a parent is missing, or a link leads nowhere
  }
}

H5::Group Hdf5Reader::group(const std::string& name) const {
  if (!has(name)) refuse(name, "a group", "nothing");
  if (file_.childObjType(name) != H5O_TYPE_GROUP) refuse(name, "a group", "a dataset");
  return file_.openGroup(name);
}

H5::DataSet Hdf5Reader::dataset(const std::string& name) const {
  if (!has(name)) refuse(name, "a dataset", "nothing");
  if (file_.childObjType(name) != H5O_TYPE_DATASET) refuse(name, "a dataset", "a group");
  return file_.openDataSet(name);
}

std::vector<std::string> Hdf5Reader::members(const std::string& name) const {
  const H5::Group parent = group(name);
  std::vector<std::string> names;
  for (hsize_t i = 0; i < parent.getNumObjs(); ++i) names.push_back(parent.getObjnameByIdx(i));
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
    if (const auto known = ieee_type(dataset.getFloatType())) return *known;
  }
  if (type.getClass() == H5T_INTEGER && type.getSize() == 2 && dataset.getIntType().getSign() == H5T_SGN_NONE &&
      text_attribute(dataset, name, "dtype") == "bfloat16") {
    return ElementType::bfloat16;
  }
  refuse(name, "float16, float32, float64, or uint16 with the attribute dtype = \"bfloat16\"",
         describe_type(type) + (type.getClass() == H5T_FLOAT ? " that is not IEEE" : ""));
}

StoredArray Hdf5Reader::array(const std::string& name) const {
  const H5::DataSet stored = dataset(name);
  return {stored, element_type(stored, name), shape(stored)};
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
    refuse(name, "finite values", fmt::format("{} at element {}", values[static_cast<std::size_t>(*bad)], *bad));
  }
  return values;
}

std::vector<Index> Hdf5Reader::integers(const std::string& name) const {
  const H5::DataSet stored = dataset(name);
  if (stored.getTypeClass() != H5T_INTEGER) refuse(name, "int64", describe_type(stored.getDataType()));
  const std::vector<Index> extents = shape(stored);
  if (extents.size() != 1) refuse(name, "an array of rank 1", fmt::format("rank {}", extents.size()));
  std::vector<std::int64_t> values(static_cast<std::size_t>(extents[0]));
  try {
    if (!values.empty()) stored.read(values.data(), H5::PredType::NATIVE_INT64);
  } catch (const H5::Exception& error) {
    refuse(name, "readable data", error.getDetailMsg());
  }
  return {values.begin(), values.end()};
}

std::optional<H5::Attribute> Hdf5Reader::scalar_attribute(const H5::H5Object& owner, const std::string& owner_name,
                                                          const std::string& name, H5T_class_t type_class,
                                                          const std::string& expected) const {
  if (!owner.attrExists(name)) return std::nullopt;
  const H5::Attribute attribute = owner.openAttribute(name);
  const std::string object = owner_name + " attribute " + name;
  const bool fits =
      attribute.getTypeClass() == type_class || (type_class == H5T_FLOAT && attribute.getTypeClass() == H5T_INTEGER);
  if (!fits) refuse(object, expected, describe_type(attribute.getDataType()));
  if (attribute.getSpace().getSimpleExtentNpoints() != 1) {
    refuse(object, "one value", fmt::format("{}", attribute.getSpace().getSimpleExtentNpoints()));
  }
  return attribute;
}

std::optional<std::string> Hdf5Reader::text_attribute(const H5::H5Object& owner, const std::string& owner_name,
                                                      const std::string& name) const {
  const auto attribute = scalar_attribute(owner, owner_name, name, H5T_STRING, "a string");
  if (!attribute) return std::nullopt;
  std::string value;
  try {
    attribute->read(attribute->getDataType(), value);
  } catch (const H5::Exception& error) {
    refuse(owner_name + " attribute " + name, "a readable string", error.getDetailMsg());
  }
  return value.substr(0, value.find('\0'));
}

std::optional<long long> Hdf5Reader::integer_attribute(const H5::H5Object& owner, const std::string& owner_name,
                                                       const std::string& name) const {
  const auto attribute = scalar_attribute(owner, owner_name, name, H5T_INTEGER, "an integer");
  if (!attribute) return std::nullopt;
  long long value = 0;
  attribute->read(H5::PredType::NATIVE_LLONG, &value);
  return value;
}

std::optional<double> Hdf5Reader::real_attribute(const H5::H5Object& owner, const std::string& owner_name,
                                                 const std::string& name) const {
  const auto attribute = scalar_attribute(owner, owner_name, name, H5T_FLOAT, "a number");
  if (!attribute) return std::nullopt;
  double value = 0;
  attribute->read(H5::PredType::NATIVE_DOUBLE, &value);
  return value;
}

void Hdf5Reader::read_raw(const StoredArray& array, const std::string& name, std::byte* target) const {
  try {
    array.dataset.read(target, memory_type(array.type));
  } catch (const H5::Exception& error) {
    refuse(name, "readable data", "a damaged or cut-off file (" + error.getDetailMsg() + ")");
  }
}

void Hdf5Reader::read_raw_rows(const StoredArray& array, const std::string& name, Index first, Index count,
                               std::byte* target) const {
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
