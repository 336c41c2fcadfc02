#pragma once

#include <hdf5.h>

#include <string>

#include "io/hdf5.h"

namespace laprox::io {

/// Refuses an attribute or dataset of strings or lists of variable length unless each of them lies whole in the file's
/// global heap and is as long as it is declared. HDF5 1.10 copies what the heap says to where the declared length fits,
/// and takes the heap's own sizes and numbers on trust: a damaged file overwrites memory, which may or may not crash.
/// `object` names what is refused. Throws DumpError.
void check_heap(const Hdf5Reader& reader, hid_t id, const std::string& object);

}  // namespace laprox::io
