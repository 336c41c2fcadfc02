#include "laprox/dump_reader.h"

#include <fmt/format.h>

#include <mutex>
#include <new>

#include "base/convert.h"
#include "base/parallel.h"
#include "dump/shared_contents.h"
#include "io/dump_layout.h"
#include "io/rehearsal.h"
#include "io/sha256.h"
#include "laprox/error.h"

namespace laprox {

namespace {

/// Rows of q that are checked at a time where they are not kept: a few MB.
constexpr Index kCheckedElements = Index{1} << 22;

}  // namespace

struct DumpReader::Impl {
  Impl(const std::filesystem::path& path, int threads)
      : file(path, "a laprox dump", thread_count(threads)), info(io::read_structure(file)) {}

  Tensor read_as(const std::string& name, ElementType type, const DumpInfo::Rows* rows = nullptr) const {
    const io::StoredArray stored = file.array(name);
    std::vector<Index> shape = stored.shape;
    if (rows) shape[1] = rows->count();
    try {
      return read_stored(stored, name, type, shape, rows);
    } catch (const std::bad_alloc&) {
      throw BackendError(fmt::format(
          "{}: {}: out of memory for {} as {}; 'laprox inspect' prints what a dump needs, and fewer stored queries "
          "(laprox-dump --queries recent:64) need less",
          file.path(), name, io::describe(shape), to_string(type)));
    }
  }

  Tensor read_stored(const io::StoredArray& stored, const std::string& name, ElementType type,
                     const std::vector<Index>& shape, const DumpInfo::Rows* rows) const {
    Tensor target(type, shape), raw;
    if (target.size() == 0) return target;
    // Where no conversion is due, the file's bytes go straight to their place.
    if (stored.type != type) raw = Tensor(stored.type, shape);
    std::byte* bytes = stored.type == type ? target.raw() : raw.raw();
    if (rows) {
      file.read_raw_rows(stored, name, rows->first, rows->count(), bytes);
    } else {
      file.read_raw(stored, name, bytes);
    }
    if (stored.type != type) convert(raw, target);
    check_finite(name, stored.type, target, rows ? rows->first : 0);
    return target;
  }

  /// Rows of q from `first` on that are checked at a time. They end where chunks end, so that none is inflated twice.
  Index end_of_block(const std::string& name, Index first) const {
    const io::StoredArray stored = file.array(name);
    const Index end = first + std::max<Index>(1, kCheckedElements / (stored.shape[0] * stored.shape[2]));
    const Index chunk = stored.packed ? stored.packed->chunk[1] : 1, whole = end / chunk * chunk;
    return whole > first ? whole : std::max(end, whole + chunk);
  }

  /// The residual stream's norms at the given rows of q.
  std::vector<double> residual_norms(Index layer, DumpInfo::Rows rows) const {
    const std::string name = io::layer_object(layer, "residual_norms");
    const std::vector<double> norms = file.reals(name);
    for (std::size_t i = 0; i < norms.size(); ++i) {
      if (!(norms[i] > 0)) file.refuse(name, "norms above 0", fmt::format("{} at [{}]", norms[i], i));
    }
    return {norms.begin() + rows.first, norms.begin() + rows.last};
  }

  static void convert(const Tensor& source, Tensor& target) {
    if (target.type() == ElementType::float64) {
      io::convert(source.raw(), source.type(), target.data<double>(), target.size());
    } else {
      io::convert(source.raw(), source.type(), target.data<float>(), target.size());
    }
  }

  void check_finite(const std::string& name, ElementType stored, const Tensor& tensor, Index first_row) const {
    const auto bad = io::first_non_finite(tensor.raw(), tensor.type(), tensor.size(), file.threads());
    if (!bad) return;
    double value = 0;
    io::convert(tensor.raw() + *bad * size_of(tensor.type()), tensor.type(), &value, 1);
    std::string where = describe(indices_of(*bad, tensor.shape()));
    if (first_row > 0) where += fmt::format(" of the rows from {} on", first_row);
    const bool narrowed = stored == ElementType::float64 && tensor.type() == ElementType::float32;
    file.refuse(name, narrowed ? "finite values within the range of float32" : "finite values",
                fmt::format("{} at {}", value, where), narrowed ? "--backend reference computes in float64" : "");
  }

  io::Hdf5Reader file;
  DumpInfo info;
  SharedContents shared;
  std::mutex hashing;
  std::string hash;  ///< of the contents, once it was asked for
};

DumpReader::DumpReader(const std::filesystem::path& path, int threads) : impl_(std::make_unique<Impl>(path, threads)) {}
DumpReader::~DumpReader() = default;
DumpReader::DumpReader(DumpReader&&) noexcept = default;

const DumpInfo& DumpReader::info() const { return impl_->info; }

LayerTensors DumpReader::read_layer(Index layer, DumpInfo::Rows rows, ElementType type) const {
  const LayerSummary& summary = impl_->info.layers.at(static_cast<std::size_t>(layer));
  require(type == ElementType::float32 || type == ElementType::float64 || type == summary.common_type(),
          "tensors are converted to float32 or float64, or stay what they all are");
  const auto& positions = impl_->info.query_positions;
  LayerTensors tensors;
  tensors.layer = layer;
  tensors.geometry = summary.geometry;
  tensors.attention = summary.attention;
  tensors.context_length = impl_->info.context_length;
  tensors.tokens = impl_->info.tokens;
  tensors.query_positions.assign(positions.begin() + rows.first, positions.begin() + rows.last);
  tensors.q = impl_->read_as(io::layer_object(layer, "q"), type, &rows);
  tensors.k = impl_->read_as(io::layer_object(layer, "k"), type);
  tensors.v = impl_->read_as(io::layer_object(layer, "v"), type);
  tensors.w_o = impl_->read_as(io::layer_object(layer, "w_o"), type);
  if (summary.has_bias) tensors.bias = impl_->file.reals(io::layer_object(layer, "b_o"));
  if (summary.has_residual_norms) tensors.residual_norms = impl_->residual_norms(layer, rows);
  impl_->file.check_unchanged();
  impl_->shared.check(tensors, impl_->info, io::layer_object(layer) + "/");
  return tensors;
}

void DumpReader::check_other_queries(Index layer, DumpInfo::Rows read) const {
  const std::string name = io::layer_object(layer, "q");
  const Index stored = static_cast<Index>(impl_->info.query_positions.size());
  // No backend computes with these rows: they may be beyond float32.
  const ElementType type = impl_->info.layers.at(static_cast<std::size_t>(layer)).q_type;
  for (const auto& [begin, end] : {std::pair{Index{0}, read.first}, std::pair{read.last, stored}}) {
    for (DumpInfo::Rows rows{begin, begin}; rows.first < end; rows.first = rows.last) {
      rows.last = std::min(end, impl_->end_of_block(name, rows.first));
      impl_->read_as(name, type, &rows);
    }
  }
}

std::optional<Matrix> DumpReader::read_output(Index layer) const {
  if (!impl_->info.layers.at(static_cast<std::size_t>(layer)).has_output) return std::nullopt;
  const Tensor output = impl_->read_as(io::layer_object(layer, "output"), ElementType::float64);
  return output.matrix<double>();
}

void DumpReader::rest() const { impl_->file.rest(); }

std::string DumpReader::content_hash() const {
  const std::scoped_lock lock(impl_->hashing);
  if (impl_->hash.empty()) impl_->hash = io::sha256_of_file(impl_->info.path);
  impl_->file.check_unchanged();
  return impl_->hash;
}

void DumpReader::learn_hash(const std::string& hash) const {
  const std::scoped_lock lock(impl_->hashing);
  impl_->hash = hash;
}

std::vector<DumpReader> open_dumps(const std::vector<std::string>& paths, int threads) {
  io::rehearse_all({paths.begin(), paths.end()});
  std::vector<DumpReader> dumps;
  for (const std::string& path : paths) dumps.emplace_back(path, threads).rest();
  return dumps;
}

}  // namespace laprox
