#include "io/filter_probe.h"

#include <functional>
#include <limits>
#include <numeric>

namespace laprox::io {

namespace {

constexpr H5Z_filter_t kProbe =
    491;  // of the numbers that nobody's filters have: 256 to 511 are for use within a program
constexpr const char* kDataset = "chunk";
constexpr std::size_t kNothing = std::numeric_limits<std::size_t>::max();

thread_local std::size_t seen = kNothing;  ///< bytes that came to the probe last

std::size_t note_length(unsigned, std::size_t, const unsigned*, std::size_t bytes, std::size_t*, void**) {
  seen = bytes;
  return 0;  // a failure: nothing is to be read
}

bool register_probe() {
  static const H5Z_class2_t probe{H5Z_CLASS_T_VERS, kProbe, 1, 1, "length of a chunk", nullptr, nullptr, note_length};
  static const bool registered = H5Zregister(&probe) >= 0;
  return registered;
}

/// The same filters with the probe before them.
void put_probe_first(hid_t properties, hid_t original) {
  H5Premove_filter(properties, H5Z_FILTER_ALL);
  H5Pset_filter(properties, kProbe, H5Z_FLAG_MANDATORY, 0, nullptr);
  for (int i = 0; i < H5Pget_nfilters(original); ++i) {
    std::size_t count = 0;
    unsigned flags = 0, config = 0;
    const auto at = static_cast<unsigned>(i);
    H5Pget_filter2(original, at, &flags, &count, nullptr, 0, nullptr, &config);
    std::vector<unsigned> values(count);
    const H5Z_filter_t filter = H5Pget_filter2(original, at, &flags, &count, values.data(), 0, nullptr, &config);
    H5Pset_filter(properties, filter, flags, values.size(), values.data());
  }
}

hid_t file_in_memory() {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_fapl_core(access, std::size_t{1} << 20, 0);
  const hid_t file = H5Fcreate("a chunk", H5F_ACC_TRUNC, H5P_DEFAULT, access);
  H5Pclose(access);
  return file;
}

}  // namespace

FilterProbe::FilterProbe(hid_t dataset) {
  if (!register_probe()) return;
  const hid_t original = H5Dget_create_plist(dataset), space = H5Dget_space(dataset), properties = H5Pcopy(original);
  const auto rank = static_cast<std::size_t>(H5Sget_simple_extent_ndims(space));
  std::vector<hsize_t> extents(rank);
  H5Pget_chunk(original, static_cast<int>(rank), extents.data());
  put_probe_first(properties, original);
  origin_.resize(rank);
  type_ = H5Dget_type(dataset);
  file_ = file_in_memory();
  const hid_t one_chunk = H5Screate_simple(static_cast<int>(rank), extents.data(), nullptr);
  H5Dclose(H5Dcreate2(file_, kDataset, type_, one_chunk, H5P_DEFAULT, properties, H5P_DEFAULT));
  values_.resize(std::accumulate(extents.begin(), extents.end(), H5Tget_size(type_), std::multiplies<>()));
  for (const hid_t each : {one_chunk, space}) H5Sclose(each);
  for (const hid_t each : {properties, original}) H5Pclose(each);
}

FilterProbe::~FilterProbe() {
  if (type_ >= 0) H5Tclose(type_);
  if (file_ >= 0) H5Fclose(file_);
}

std::optional<std::size_t> FilterProbe::unpacked_size(const std::vector<unsigned char>& packed, unsigned skipped) {
  seen = kNothing;
  // Opened anew each time: HDF5 1.10 remembers a chunk's size and mask as they were before it was written.
  const auto opened = [this](const auto& use) {
    const hid_t chunk = H5Dopen2(file_, kDataset, H5P_DEFAULT);
    const bool done = chunk >= 0 && use(chunk) >= 0;
    if (chunk >= 0) H5Dclose(chunk);
    return done;
  };
  const bool written = opened([&](hid_t chunk) {
    return H5Dwrite_chunk(chunk, H5P_DEFAULT, skipped << 1U, origin_.data(), packed.size(), packed.data());
  });
  if (written)
    opened([&](hid_t chunk) { return H5Dread(chunk, type_, H5S_ALL, H5S_ALL, H5P_DEFAULT, values_.data()); });
  return seen == kNothing ? std::nullopt : std::optional(seen);
}

}  // namespace laprox::io
