#include "io/soundness.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

namespace laprox::io {

namespace {

constexpr std::size_t kMostFilters = 32;

class StorageCheck {
 public:
  StorageCheck(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name)
      : reader_(reader),
        dataset_(dataset),
        name_(name),
        properties_(dataset.getCreatePlist()),
        space_(dataset.getSpace()) {}

  void run() {
    const H5D_layout_t layout = properties_.getLayout();
    if (layout == H5D_VIRTUAL) {
      reader_.refuse(name_, "data in this file", "a virtual dataset",
                     "copy what it shows into one file, for example with h5repack");
    }
    if (H5Pget_external_count(properties_.getId()) > 0) {
      reader_.refuse(name_, "data in this file", "external storage", "copy the data into the file with h5repack");
    }
    if (space_.getSimpleExtentNpoints() == 0) return;
    if (layout == H5D_CHUNKED) {
      check_filters();
      check_chunks();
    } else if (layout == H5D_CONTIGUOUS) {
      check_contiguous();
    }
  }

 private:
  [[noreturn]] void refuse_unwritten() const {
    reader_.refuse(name_, "data", "a dataset, or a part of it, that was never written",
                   "the program that made the file ended early, or wrote only some of it");
  }

  /// What lies in one piece cannot be longer than its file.
  void check_contiguous() const {
    if (dataset_.getStorageSize() == 0) refuse_unwritten();
    const double bytes =
        static_cast<double>(space_.getSimpleExtentNpoints()) * static_cast<double>(dataset_.getDataType().getSize());
    if (bytes <= static_cast<double>(reader_.file_size())) return;
    reader_.refuse(name_, "data within the file",
                   fmt::format("{:.0f} bytes in a file of {}", bytes, reader_.file_size()),
                   "the file is damaged or cut short; copy it again");
  }

  void check_filters() {
    for (int i = 0; i < properties_.getNfilters(); ++i) {
      std::size_t values = 0;
      unsigned flags = 0, config = 0;
      std::array<char, 64> name{};
      const H5Z_filter_t filter = H5Pget_filter2(properties_.getId(), static_cast<unsigned>(i), &flags, &values,
                                                 nullptr, name.size() - 1, name.data(), &config);
      if (filter < 0) reader_.refuse(name_, "a readable list of filters", "a damaged one");
      filters_.push_back(filter);
      if (H5Zfilter_avail(filter) > 0) continue;
      reader_.refuse(name_, "a filter that this HDF5 has", fmt::format("filter {} '{}'", filter, name.data()),
                     "point HDF5_PLUGIN_PATH to the folder of its plugin, or store the data with gzip");
    }
    if (filters_.size() > kMostFilters) reader_.refuse(name_, "at most 32 filters", fmt::format("{}", filters_.size()));
  }

  void check_chunks() {
    const std::vector<Index> shape = reader_.shape(dataset_);
    std::vector<hsize_t> chunk(shape.size());
    properties_.getChunk(static_cast<int>(chunk.size()), chunk.data());
    double needed = 1, bytes = static_cast<double>(dataset_.getDataType().getSize());
    for (std::size_t i = 0; i < shape.size(); ++i) {
      const auto size = static_cast<double>(chunk[i]);
      needed *= std::ceil(static_cast<double>(shape[i]) / size);
      bytes *= size;
    }
    hsize_t stored = 0;
    if (H5Dget_num_chunks(dataset_.getId(), space_.getId(), &stored) < 0) {
      reader_.refuse(name_, "a readable index of chunks", "a damaged one");
    }
    if (static_cast<double>(stored) < needed) refuse_unwritten();
    const bool deflated = !filters_.empty() && filters_.back() == H5Z_FILTER_DEFLATE;
    // Shuffling keeps the size, so what the last filter inflates to must be the chunk.
    if (deflated &&
        std::all_of(filters_.begin(), filters_.end() - 1, [](H5Z_filter_t f) { return f == H5Z_FILTER_SHUFFLE; })) {
      for (hsize_t i = 0; i < stored; ++i) check_inflates(i, shape.size(), static_cast<std::size_t>(bytes));
    }
  }

  void check_inflates(hsize_t number, std::size_t rank, std::size_t expected) {
    std::vector<hsize_t> offset(rank);
    unsigned skipped = 0;
    haddr_t address = 0;
    hsize_t size = 0;
    if (H5Dget_chunk_info(dataset_.getId(), space_.getId(), number, offset.data(), &skipped, &address, &size) < 0) {
      reader_.refuse(name_, "a readable index of chunks", "a damaged one");
    }
    if (skipped != 0) return;  // this chunk was stored without its filters
    if (size > reader_.file_size()) {
      reader_.refuse(name_, "chunks within the file", fmt::format("chunk {} of {} bytes", number, size));
    }
    packed_.resize(size);
    std::uint32_t mask = 0;
    if (H5Dread_chunk(dataset_.getId(), H5P_DEFAULT, offset.data(), &mask, packed_.data()) < 0) {
      reader_.refuse(name_, "readable data", fmt::format("chunk {} that cannot be read", number),
                     "the file is damaged");
    }
    // One byte more than there should be, so that a chunk that is too long shows as well.
    inflated_.resize(expected + 1);
    uLongf length = inflated_.size();
    const int status = uncompress(inflated_.data(), &length, packed_.data(), static_cast<uLong>(size));
    if (status == Z_OK && length == expected) return;
    reader_.refuse(name_, fmt::format("chunks of {} bytes", expected),
                   status == Z_OK ? fmt::format("chunk {} that inflates to {}", number, length)
                                  : fmt::format("chunk {} that does not inflate to that", number),
                   "the file is damaged");
  }

  const Hdf5Reader& reader_;
  const H5::DataSet& dataset_;
  const std::string& name_;
  H5::DSetCreatPropList properties_;
  H5::DataSpace space_;
  std::vector<H5Z_filter_t> filters_;
  std::vector<Bytef> packed_, inflated_;
};

}  // namespace

void check_stored(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name) {
  StorageCheck(reader, dataset, name).run();
}

}  // namespace laprox::io
