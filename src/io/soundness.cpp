#include "io/soundness.h"

#include <fmt/format.h>

#include "io/chunk_check.h"

namespace laprox::io {

namespace {

/// What lies in one piece was written, and is no longer than its file.
void check_contiguous(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name) {
  if (dataset.getStorageSize() == 0) {
    reader.refuse(name, "data", "a dataset, or a part of it, that was never written",
                  "the program that made the file ended early, or wrote only some of it");
  }
  const double bytes = static_cast<double>(dataset.getSpace().getSimpleExtentNpoints()) *
                       static_cast<double>(dataset.getDataType().getSize());
  if (bytes <= static_cast<double>(reader.file_size())) return;
  reader.refuse(name, "data within the file", fmt::format("{:.0f} bytes in a file of {}", bytes, reader.file_size()),
                "the file is damaged or cut short; copy it again");
}

}  // namespace

void check_stored(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name,
                  const PackedChunks* packed) {
  const H5::DSetCreatPropList properties = dataset.getCreatePlist();
  const H5D_layout_t layout = properties.getLayout();
  if (layout == H5D_VIRTUAL) {
    reader.refuse(name, "data in this file", "a virtual dataset",
                  "copy what it shows into one file, for example with h5repack");
  }
  if (H5Pget_external_count(properties.getId()) > 0) {
    reader.refuse(name, "data in this file", "external storage", "copy the data into the file with h5repack");
  }
  if (dataset.getSpace().getSimpleExtentNpoints() == 0) return;
  if (packed) return check_packed_chunks(reader, dataset, name, *packed);
  if (layout == H5D_CHUNKED) check_chunks(reader, dataset, name);
  if (layout == H5D_CONTIGUOUS) check_contiguous(reader, dataset, name);
}

}  // namespace laprox::io
