#pragma once

#include <hdf5.h>

#include <cstddef>
#include <optional>
#include <vector>

namespace laprox::io {

/// Tells how long the stored chunks of a dataset become when HDF5 undoes their filters, of whatever kind those are.
/// HDF5 itself does not look, and reads what lies behind a short chunk in memory.
///
/// The chunk is put into a dataset of the same kind in a file in memory, whose filters are the same but for one more in
/// the first place, which is undone last: it sees the length and ends the reading.
class FilterProbe {
 public:
  /// `dataset` has chunks.
  explicit FilterProbe(hid_t dataset);
  ~FilterProbe();
  FilterProbe(const FilterProbe&) = delete;
  FilterProbe& operator=(const FilterProbe&) = delete;

  /// `skipped`: the chunk's mask of filters that it was stored without. Nothing where the filters fail.
  std::optional<std::size_t> unpacked_size(const std::vector<unsigned char>& packed, unsigned skipped);

 private:
  hid_t file_ = H5I_INVALID_HID, type_ = H5I_INVALID_HID;
  std::vector<hsize_t> origin_;
  std::vector<unsigned char> values_;
};

}  // namespace laprox::io
