#include "io/chunk_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>

#include "io/filter_probe.h"
#include "io/inflate.h"

namespace laprox::io {

namespace {

constexpr int kMostFilters = 32;
constexpr std::size_t kChecksum = 4;  // bytes that Fletcher's adds to a chunk

class ChunkCheck {
 public:
  ChunkCheck(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name)
      : reader_(reader),
        id_(dataset.getId()),
        name_(name),
        space_(dataset.getSpace()),
        shape_(reader.shape(dataset)),
        chunk_(shape_.size()),
        bytes_(static_cast<double>(dataset.getDataType().getSize())) {
    const H5::DSetCreatPropList properties = dataset.getCreatePlist();
    filters_ = filters_of(properties.getId());
    properties.getChunk(static_cast<int>(chunk_.size()), chunk_.data());
    H5Pget_chunk_opts(properties.getId(), &options_);
  }

  /// Every chunk is there, once: as many as should be, and one for each place. What it inflates to is looked at when it
  /// is read.
  void run_packed(const PackedChunks& packed) {
    check_filters();
    check_count(static_cast<double>(packed.count()));
    for (Index number = 0; number < packed.count(); ++number) {
      const std::vector<hsize_t> offset = packed.offset(packed.origin(number));
      hsize_t size = 0;
      if (H5Dget_chunk_storage_size(id_, offset.data(), &size) < 0 || size == 0) refuse_index();
      check_in_file(number, size);
    }
  }

  void run() {
    check_filters();
    double needed = 1;
    for (std::size_t i = 0; i < shape_.size(); ++i) {
      if (chunk_[i] == 0) refuse_index();
      needed *= std::ceil(static_cast<double>(shape_[i]) / static_cast<double>(chunk_[i]));
      bytes_ *= static_cast<double>(chunk_[i]);
    }
    const hsize_t stored = check_count(needed);
    std::vector<hsize_t> places;
    for (hsize_t i = 0; i < stored; ++i) places.push_back(check_chunk(i));
    std::sort(places.begin(), places.end());
    if (std::adjacent_find(places.begin(), places.end()) != places.end()) refuse_index();
  }

 private:
  /// Returns how many chunks are stored.
  hsize_t check_count(double needed) const {
    hsize_t stored = 0;
    if (H5Dget_num_chunks(id_, space_.getId(), &stored) < 0 || static_cast<double>(stored) > needed) refuse_index();
    if (static_cast<double>(stored) < needed) {
      reader_.refuse(name_, "data", "a dataset, or a part of it, that was never written",
                     "the program that made the file ended early, or wrote only some of it");
    }
    return stored;
  }

  void check_in_file(Index number, hsize_t size) const {
    if (size > reader_.file_size()) {
      reader_.refuse(name_, "chunks within the file", fmt::format("chunk {} of {} bytes", number, size));
    }
  }

  [[noreturn]] void refuse_index() const {
    reader_.refuse(name_, "a readable index of chunks", "a damaged one", "copy the file again");
  }

  void check_filters() const {
    if (std::find(filters_.begin(), filters_.end(), H5Z_FILTER_ERROR) != filters_.end()) {
      reader_.refuse(name_, "a readable list of at most 32 filters", "a damaged one");
    }
    for (const H5Z_filter_t filter : filters_) {
      if (reads_on(filter)) {
        reader_.refuse(name_, "a filter that sees where its data end",
                       fmt::format("filter {}{}", filter, spoken_name(filter)),
                       "store the data with gzip, as h5repack -f GZIP=4 does");
      }
      if (H5Zfilter_avail(filter) > 0) continue;
      reader_.refuse(name_, "a filter that this HDF5 has", fmt::format("filter {}{}", filter, spoken_name(filter)),
                     "point HDF5_PLUGIN_PATH to the folder of its plugin, or store the data with gzip");
    }
    if (options_ != 0) {
      reader_.refuse(name_, "chunks that are all filtered alike", "some at the edge that are not",
                     "copy it with h5repack");
    }
  }

  /// HDF5's own scale-offset, N-bit and szip filters make a whole chunk of what lies behind a short one in memory.
  static bool reads_on(H5Z_filter_t filter) {
    return filter == H5Z_FILTER_SCALEOFFSET || filter == H5Z_FILTER_NBIT || filter == H5Z_FILTER_SZIP;
  }

  std::string spoken_name(H5Z_filter_t filter) const {
    std::array<char, 64> text{};
    const hid_t properties = H5Dget_create_plist(id_);
    std::size_t values = 0;
    unsigned flags = 0, config = 0;
    H5Pget_filter_by_id2(properties, filter, &flags, &values, nullptr, text.size() - 1, text.data(), &config);
    H5Pclose(properties);
    return text[0] == '\0' ? "" : fmt::format(" '{}'", text.data());
  }

  /// Returns the chunk's place in the dataset, counted in chunks.
  hsize_t check_chunk(hsize_t number) {
    std::vector<hsize_t> offset(shape_.size());
    unsigned skipped = 0;
    haddr_t address = 0;
    hsize_t size = 0, found = 0;
    if (H5Dget_chunk_info(id_, space_.getId(), number, offset.data(), &skipped, &address, &size) < 0) refuse_index();
    hsize_t place = 0;
    for (std::size_t i = 0; i < offset.size(); ++i) {
      const auto extent = static_cast<hsize_t>(shape_[i]);
      if (offset[i] >= extent || offset[i] % chunk_[i] != 0) refuse_index();
      place = place * ((extent + chunk_[i] - 1) / chunk_[i]) + offset[i] / chunk_[i];
    }
    check_in_file(static_cast<Index>(number), size);
    // Chunks are read by their offset, which a damaged index can answer with another one.
    const bool packed = !filters_.empty();
    if (packed && (H5Dget_chunk_storage_size(id_, offset.data(), &found) < 0 || found != size)) refuse_index();
    check_size(number, offset, skipped, static_cast<std::size_t>(size));
    return place;
  }

  void check_size(hsize_t number, const std::vector<hsize_t>& offset, unsigned skipped, std::size_t size) {
    const std::optional<std::size_t> length =
        size_is_known(filters_) ? unpacked_size(offset, skipped, size) : probed_size(offset, skipped, size);
    if (length && static_cast<double>(*length) == bytes_) return;
    const std::string expected = fmt::format("chunks of {:.0f} bytes", bytes_);
    const std::string is = skipped == 0 && !filters_.empty() ? "inflates to" : "holds";
    reader_.refuse(name_, expected,
                   length ? fmt::format("chunk {} that {} {}", number, is, *length)
                          : fmt::format("chunk {} that does not inflate to that", number),
                   "the file is damaged");
  }

  /// The size of a chunk without its filters; nothing where they cannot be undone.
  std::optional<std::size_t> unpacked_size(const std::vector<hsize_t>& offset, unsigned skipped, std::size_t size) {
    std::optional<std::size_t> length = size;
    for (std::size_t i = filters_.size(); i-- > 0 && length;) {
      if ((skipped >> i & 1U) != 0) continue;  // this chunk was stored without the filter
      if (filters_[i] == H5Z_FILTER_FLETCHER32)
        length = *length < kChecksum ? std::nullopt : std::optional(*length - kChecksum);
      if (filters_[i] == H5Z_FILTER_DEFLATE && length) length = inflated_size(offset, size, *length);
    }
    return length;
  }

  /// The same of other filters, by HDF5 itself.
  std::optional<std::size_t> probed_size(const std::vector<hsize_t>& offset, unsigned skipped, std::size_t size) {
    if (!probe_) probe_.emplace(id_);
    return read_packed(offset, size) ? probe_->unpacked_size(packed_, skipped) : std::nullopt;
  }

  bool read_packed(const std::vector<hsize_t>& offset, std::size_t size) {
    packed_.resize(size);
    std::uint32_t mask = 0;
    return H5Dread_chunk(id_, H5P_DEFAULT, offset.data(), &mask, packed_.data()) >= 0;
  }

  /// What the first `deflated` of a stored chunk's bytes inflate to; nothing where they are damaged or too many.
  std::optional<std::size_t> inflated_size(const std::vector<hsize_t>& offset, std::size_t size, std::size_t deflated) {
    if (!read_packed(offset, size)) return std::nullopt;
    return inflate(packed_, deflated, static_cast<std::size_t>(bytes_), inflated_);
  }

  const Hdf5Reader& reader_;
  const hid_t id_;
  const std::string& name_;
  H5::DataSpace space_;
  std::vector<Index> shape_;
  std::vector<hsize_t> chunk_;
  double bytes_;  ///< of a chunk, when unpacked
  unsigned options_ = 0;
  std::vector<H5Z_filter_t> filters_;
  std::vector<unsigned char> packed_, inflated_;
  std::optional<FilterProbe> probe_;
};

}  // namespace

std::vector<H5Z_filter_t> filters_of(hid_t properties) {
  const int count = H5Pget_nfilters(properties);
  if (count < 0 || count > kMostFilters) return {H5Z_FILTER_ERROR};
  std::vector<H5Z_filter_t> filters;
  for (int i = 0; i < count; ++i) {
    std::size_t values = 0;
    unsigned flags = 0, config = 0;
    filters.push_back(
        H5Pget_filter2(properties, static_cast<unsigned>(i), &flags, &values, nullptr, 0, nullptr, &config));
  }
  return filters;
}

bool size_is_known(const std::vector<H5Z_filter_t>& filters) {
  constexpr std::array order{H5Z_FILTER_SHUFFLE, H5Z_FILTER_DEFLATE, H5Z_FILTER_FLETCHER32};
  auto next = order.begin();
  for (const H5Z_filter_t filter : filters) {
    next = std::find(next, order.end(), filter);
    if (next == order.end()) return false;
    ++next;
  }
  return true;
}

void check_chunks(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name) {
  ChunkCheck(reader, dataset, name).run();
}

void check_packed_chunks(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name,
                         const PackedChunks& packed) {
  ChunkCheck(reader, dataset, name).run_packed(packed);
}

}  // namespace laprox::io
