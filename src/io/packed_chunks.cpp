#include "io/packed_chunks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "base/parallel.h"
#include "io/chunk_check.h"
#include "io/hdf5.h"
#include "io/inflate.h"

namespace laprox::io {

namespace {

constexpr std::size_t kHeldBytes = std::size_t{64} << 20;  ///< of chunks, packed and unpacked, in all threads

/// Puts elements [first, first + count) of a shuffled chunk together: the first bytes of all its elements come first,
/// then the second ones.
template <std::size_t size>
void unshuffle(const unsigned char* chunk, std::size_t elements, std::size_t first, std::size_t count,
               std::byte* target) {
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t byte = 0; byte < size; ++byte) {
      target[i * size + byte] = static_cast<std::byte>(chunk[byte * elements + first + i]);
    }
  }
}

class PackedRead {
 public:
  using Extents = PackedChunks::Extents;

  PackedRead(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name, const PackedChunks& packed,
             const Slab& slab, std::byte* target)
      : reader_(reader), id_(dataset.getId()), name_(name), packed_(packed), slab_(slab), target_(target) {
    const H5::DSetCreatPropList properties = dataset.getCreatePlist();
    deflate_bit_ = filters_of(properties.getId()).size() - 1;
    for (std::size_t d = 0; d < first_.size(); ++d) {
      first_[d] = slab.first[d] / packed.chunk[d];
      count_[d] = (slab.first[d] + slab.count[d] - 1) / packed.chunk[d] + 1 - first_[d];
    }
  }

  void run(int threads) {
    const auto most = static_cast<int>(kHeldBytes / (2 * packed_.bytes()));
    threads = std::max(1, std::min(threads, most));
    std::vector<Buffers> buffers(static_cast<std::size_t>(threads));
    parallel_for(threads, count_[0] * count_[1] * count_[2], [&](Index task, std::size_t thread) {
      Extents origin{(first_[0] + task / (count_[1] * count_[2])) * packed_.chunk[0],
                     (first_[1] + task / count_[2] % count_[1]) * packed_.chunk[1],
                     (first_[2] + task % count_[2]) * packed_.chunk[2]};
      place(origin, buffers[thread]);
    });
  }

 private:
  struct Buffers {
    std::vector<unsigned char> stored, inflated;
  };

  /// The chunk as it is stored; returns the mask of the filters that it was stored without. HDF5 serves one thread at
  /// a time.
  unsigned read(const Extents& origin, std::vector<unsigned char>& stored) {
    const std::scoped_lock lock(hdf5_);
    H5::Exception::dontPrint();  // HDF5 knows this for each thread by itself
    const std::vector<hsize_t> offset = packed_.offset(origin);
    hsize_t size = 0;
    std::uint32_t skipped = 0;
    bool done = H5Dget_chunk_storage_size(id_, offset.data(), &size) >= 0 && size <= reader_.file_size();
    if (done) stored.resize(static_cast<std::size_t>(size));
    done = done && size > 0 && H5Dread_chunk(id_, H5P_DEFAULT, offset.data(), &skipped, stored.data()) >= 0;
    if (!done) reader_.refuse(name_, "readable data", "a damaged or cut-off file", "copy it again");
    return skipped;
  }

  [[noreturn]] void refuse(const Extents& origin, const std::string& found) const {
    const std::vector<hsize_t> offset = packed_.offset(origin);
    reader_.refuse(name_, fmt::format("chunks of {} bytes", packed_.bytes()),
                   fmt::format("a chunk at {} that {}", describe({offset.begin(), offset.end()}), found),
                   "the file is damaged");
  }

  void place(const Extents& origin, Buffers& buffers) {
    const unsigned skipped = read(origin, buffers.stored);
    const bool deflated = (skipped >> deflate_bit_ & 1U) == 0;
    if (deflated) {
      const auto length = inflate(buffers.stored, buffers.stored.size(), packed_.bytes(), buffers.inflated);
      if (!length) refuse(origin, "does not inflate to that");
      if (*length != packed_.bytes()) refuse(origin, fmt::format("inflates to {}", *length));
    } else if (buffers.stored.size() != packed_.bytes()) {
      refuse(origin, fmt::format("holds {}", buffers.stored.size()));
    }
    const bool shuffled = packed_.shuffled && (skipped & 1U) == 0;  // which comes first, before deflating
    copy(origin, (deflated ? buffers.inflated : buffers.stored).data(), shuffled);
  }

  /// What the slab wants of a chunk, row by row; rows that follow each other in both are one.
  void copy(const Extents& origin, const unsigned char* chunk, bool shuffled) {
    const Extents &extent = packed_.chunk, &wanted = slab_.count;
    Extents first{}, last{};
    for (std::size_t d = 0; d < first.size(); ++d) {
      first[d] = std::max(origin[d], slab_.first[d]);
      last[d] = std::min(origin[d] + extent[d], slab_.first[d] + wanted[d]);
    }
    const bool joined = extent[2] == wanted[2] && last[2] - first[2] == extent[2];
    const Index step = joined ? last[1] - first[1] : 1, run = step * (last[2] - first[2]);
    for (Index i = first[0]; i < last[0]; ++i) {
      for (Index j = first[1]; j < last[1]; j += step) {
        const Index from = ((i - origin[0]) * extent[1] + j - origin[1]) * extent[2] + first[2] - origin[2];
        const Index to =
            ((i - slab_.first[0]) * wanted[1] + j - slab_.first[1]) * wanted[2] + first[2] - slab_.first[2];
        gather(chunk, shuffled, static_cast<std::size_t>(from), static_cast<std::size_t>(run),
               target_ + static_cast<std::size_t>(to) * packed_.element);
      }
    }
  }

  void gather(const unsigned char* chunk, bool shuffled, std::size_t first, std::size_t count,
              std::byte* target) const {
    if (!shuffled) {
      std::memcpy(target, chunk + first * packed_.element, count * packed_.element);
    } else if (packed_.element == 2) {
      unshuffle<2>(chunk, packed_.elements(), first, count, target);
    } else if (packed_.element == 4) {
      unshuffle<4>(chunk, packed_.elements(), first, count, target);
    } else {
      unshuffle<8>(chunk, packed_.elements(), first, count, target);
    }
  }

  const Hdf5Reader& reader_;
  const hid_t id_;
  const std::string& name_;
  const PackedChunks& packed_;
  const Slab& slab_;
  std::byte* target_;
  std::size_t deflate_bit_ = 0;
  Extents first_{}, count_{};  ///< the chunks that the slab touches, in chunks
  std::mutex hdf5_;
};

/// Whether the filters are [shuffle,] deflate, and shuffle what they should.
std::optional<bool> shuffled_and_deflated(const H5::DSetCreatPropList& properties, std::size_t element) {
  const std::vector<H5Z_filter_t> filters = filters_of(properties.getId());
  if (filters == std::vector{H5Z_FILTER_DEFLATE}) return false;
  if (filters != std::vector{H5Z_FILTER_SHUFFLE, H5Z_FILTER_DEFLATE}) return std::nullopt;
  unsigned flags = 0, config = 0, shuffled_size = 0;
  std::size_t values = 1;
  H5Pget_filter2(properties.getId(), 0, &flags, &values, &shuffled_size, 0, nullptr, &config);
  return values == 1 && shuffled_size == element ? std::optional(true) : std::nullopt;
}

}  // namespace

PackedChunks::Extents PackedChunks::origin(Index number) const {
  return {number / (count(1) * count(2)) * chunk[0], number / count(2) % count(1) * chunk[1],
          number % count(2) * chunk[2]};
}

std::vector<hsize_t> PackedChunks::offset(const Extents& origin) const {
  return {origin.end() - static_cast<std::ptrdiff_t>(rank), origin.end()};
}

std::optional<PackedChunks> packed_chunks(const H5::DataSet& dataset, const H5::DataType& memory) {
  const H5::DSetCreatPropList properties = dataset.getCreatePlist();
  const H5::DataSpace space = dataset.getSpace();
  if (properties.getLayout() != H5D_CHUNKED || H5Tequal(dataset.getDataType().getId(), memory.getId()) <= 0) return {};
  PackedChunks packed;
  packed.rank = static_cast<std::size_t>(std::max(0, H5Sget_simple_extent_ndims(space.getId())));
  packed.element = memory.getSize();
  const auto shuffled = shuffled_and_deflated(properties, packed.element);
  if (!shuffled || packed.rank == 0 || packed.rank > PackedChunks::kRank) return {};
  packed.shuffled = *shuffled;
  packed.shape.fill(1);
  packed.chunk.fill(1);
  std::array<hsize_t, PackedChunks::kRank> shape{}, chunk{};
  space.getSimpleExtentDims(shape.data());
  properties.getChunk(static_cast<int>(packed.rank), chunk.data());
  for (std::size_t d = 0; d < packed.rank; ++d) {
    if (shape[d] == 0 || chunk[d] == 0) return {};
    packed.shape[PackedChunks::kRank - packed.rank + d] = static_cast<Index>(shape[d]);
    packed.chunk[PackedChunks::kRank - packed.rank + d] = static_cast<Index>(chunk[d]);
  }
  return packed;
}

void read_packed(const Hdf5Reader& reader, const H5::DataSet& dataset, const std::string& name,
                 const PackedChunks& packed, const Slab& slab, int threads, std::byte* target) {
  PackedRead(reader, dataset, name, packed, slab, target).run(threads);
}

}  // namespace laprox::io
