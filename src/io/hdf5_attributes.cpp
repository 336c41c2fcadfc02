#include <fmt/format.h>

#include <limits>

#include "base/text.h"
#include "io/hdf5.h"
#include "io/heap_check.h"

namespace laprox::io {

std::optional<H5::Attribute> Hdf5Reader::scalar_attribute(const H5::H5Object& owner, const std::string& owner_name,
                                                          const std::string& name, H5T_class_t type_class,
                                                          const std::string& expected) const {
  if (!owner.attrExists(name)) return std::nullopt;
  H5::Attribute attribute = owner.openAttribute(name);
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
  const H5::StrType type = attribute->getStrType();
  const std::string object = owner_name + " attribute " + name;
  try {
    if (type.isVariableStr()) {
      check_heap(*this, attribute->getId(), object);
      char* text = nullptr;
      attribute->read(type, static_cast<void*>(&text));
      if (!text) refuse(object, "a string", "one that was never written");
      std::string value = printable(text);
      H5free_memory(text);
      return value;
    }
    std::vector<char> text(type.getSize() + 1, '\0');
    attribute->read(type, static_cast<void*>(text.data()));
    return printable(text.data());
  } catch (const H5::Exception& error) {
    refuse(object, "a readable string", error.getDetailMsg());
  }
}

std::optional<long long> Hdf5Reader::integer_attribute(const H5::H5Object& owner, const std::string& owner_name,
                                                       const std::string& name) const {
  const auto attribute = scalar_attribute(owner, owner_name, name, H5T_INTEGER, "an integer");
  if (!attribute) return std::nullopt;
  const H5::IntType type = attribute->getIntType();
  const std::string object = owner_name + " attribute " + name;
  if (type.getSize() > sizeof(long long)) refuse(object, "an integer of at most 64 bits", describe_type(type));
  if (type.getSign() == H5T_SGN_NONE) {
    // Read as what it is: HDF5 makes the largest number of a signed type of all that are larger.
    unsigned long long value = 0;
    attribute->read(H5::PredType::NATIVE_ULLONG, &value);
    constexpr auto most = static_cast<unsigned long long>(std::numeric_limits<long long>::max());
    if (value > most) refuse(object, fmt::format("an integer of at most {}", most), std::to_string(value));
    return static_cast<long long>(value);
  }
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

}  // namespace laprox::io
