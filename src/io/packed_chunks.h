#pragma once

#include <H5Cpp.h>

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "laprox/tensor.h"

namespace laprox::io {

class Hdf5Reader;

/// How the chunks of a dataset are packed, where this library unpacks them itself, by several threads: deflated, maybe
/// shuffled before. HDF5 unpacks one chunk after the other.
struct PackedChunks {
  static constexpr std::size_t kRank = 3;
  using Extents = std::array<Index, kRank>;

  std::size_t rank = 0;      ///< of the dataset; its dimensions are the last ones here, those before have extent 1
  Extents shape{}, chunk{};  ///< of the dataset and of a chunk, in elements
  std::size_t element = 0;   ///< bytes of an element
  bool shuffled = false;

  std::size_t elements() const { return static_cast<std::size_t>(chunk[0] * chunk[1] * chunk[2]); }
  std::size_t bytes() const { return elements() * element; }  ///< of a chunk, when unpacked
  /// Chunks along a dimension.
  Index count(std::size_t dimension) const { return (shape[dimension] + chunk[dimension] - 1) / chunk[dimension]; }
  Index count() const { return count(0) * count(1) * count(2); }
  /// Where the chunk of this number, row by row, begins.
  Extents origin(Index number) const;
  /// The same, as HDF5 wants it.
  std::vector<hsize_t> offset(const Extents& origin) const;
};

/// Nothing where HDF5 has to read the dataset: it has no chunks, other filters, more than three dimensions, or its
/// elements lie in the file otherwise than in memory.
std::optional<PackedChunks> packed_chunks(const H5::DataSet& dataset, const H5::DataType& memory);

/// A part of a dataset: `count` elements from `first` on in each dimension.
struct Slab {
  PackedChunks::Extents first{}, count{};
};

/// Reads a part of a dataset, row by row, to `target`. Each chunk that it touches is read and inflated once; up to
/// `threads` threads inflate, of which each holds a chunk. Throws DumpError where one does not inflate to its size.
void read_packed(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name,
                 const PackedChunks& packed, const Slab& slab, int threads, std::byte* target);

}  // namespace laprox::io
