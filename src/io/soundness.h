#pragma once

#include <string>

#include "io/hdf5.h"

namespace laprox::io {

/// Refuses a dataset whose values nobody wrote, or that lie in another file, before any of them is read: virtual and
/// external storage, chunks or data that were never allocated, filters that this HDF5 lacks, chunks of
/// another size than theirs (chunk_check.h). HDF5 itself reads the first as fill values and the last as uninitialised
/// memory. Cost: one look at every chunk, and one more decompression of deflated ones. Throws DumpError.
/// `packed`: given, what the chunks inflate to is left to the one who reads them.
void check_stored(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name,
                  const PackedChunks* packed = nullptr);

}  // namespace laprox::io
