#pragma once

#include "io/hdf5.h"
#include "laprox/dump_info.h"

namespace laprox::io {

inline constexpr const char* kDumpFormat = "laprox-dump";
inline constexpr int kDumpVersion = 1;

/// "/layers/<layer>/<tensor>"
std::string layer_object(Index layer, const std::string& tensor = {});

/// Reads and checks everything in a dump but the values of its tensors. Throws DumpError.
DumpInfo read_structure(const Hdf5Reader& reader);

}  // namespace laprox::io
