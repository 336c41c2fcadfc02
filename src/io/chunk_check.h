#pragma once

#include <hdf5.h>

#include <string>
#include <vector>

#include "io/hdf5.h"

namespace laprox::io {

/// The filters of a dataset's chunks, in the order in which they were applied. A filter that cannot be read of a
/// damaged list is H5Z_FILTER_ERROR.
std::vector<H5Z_filter_t> filters_of(hid_t properties);

/// Whether the size of an unpacked chunk can be told without HDF5: shuffling, then deflating, then a checksum, each or
/// none. Chunks of other filters are unpacked in the rehearsal first, as their code may crash on damaged data.
bool size_is_known(const std::vector<H5Z_filter_t>& filters);

/// Refuses a chunked dataset unless every filter is there, and every chunk, once, and holds as many bytes as it should.
/// HDF5 itself reads what lies behind a short one in memory. Throws DumpError.
void check_chunks(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name);

/// The same of an array whose chunks this library inflates: their sizes are checked when they are read.
void check_packed_chunks(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name,
                         const PackedChunks& packed);

}  // namespace laprox::io
