#include "laprox/dump_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/convert.h"
#include "io/dump_layout.h"
#include "io/output_file.h"
#include "laprox/error.h"

namespace laprox {

namespace {

H5::DataSpace space_of(const std::vector<Index>& shape) {
  const std::vector<hsize_t> extents(shape.begin(), shape.end());
  return H5::DataSpace(static_cast<int>(extents.size()), extents.data());
}

/// Compressed, in chunks of some tokens of one head, about 256 KiB: several threads have work on one head, and a range
/// of tokens has little to inflate that it does not need.
void compress(H5::DSetCreatPropList& properties, const std::vector<Index>& shape, ElementType type, int gzip) {
  constexpr Index bytes = Index{1} << 18;
  std::vector<hsize_t> chunk(shape.size(), 1);
  const Index rows = std::max<Index>(1, bytes / (shape.back() * size_of(type)));
  chunk.back() = static_cast<hsize_t>(shape.back());
  chunk[chunk.size() - 2] = static_cast<hsize_t>(std::min(rows, shape[shape.size() - 2]));
  properties.setChunk(static_cast<int>(chunk.size()), chunk.data());
  properties.setShuffle();
  properties.setDeflate(gzip);
}

void write_tensor(H5::Group& group, const std::string& name, const Tensor& tensor, ElementType type, int gzip) {
  std::vector<std::byte> raw(static_cast<std::size_t>(tensor.size() * size_of(type)));
  if (tensor.type() == ElementType::float64) {
    io::convert_to(tensor.data<double>(), raw.data(), type, tensor.size());
  } else {
    io::convert_to(tensor.data<float>(), raw.data(), type, tensor.size());
  }
  H5::DataType stored = H5::PredType::NATIVE_UINT16;
  if (type == ElementType::float16) stored = io::float16_type();
  if (type == ElementType::float32) stored = H5::PredType::NATIVE_FLOAT;
  if (type == ElementType::float64) stored = H5::PredType::NATIVE_DOUBLE;
  H5::DSetCreatPropList properties = io::dataset_properties();
  if (gzip > 0 && tensor.size() > 0) compress(properties, tensor.shape(), type, gzip);
  H5::DataSet dataset = group.createDataSet(name, stored, space_of(tensor.shape()), properties);
  dataset.write(raw.data(), stored);
  if (type == ElementType::bfloat16) io::write_attribute(dataset, "dtype", std::string("bfloat16"));
}

void write_reals(H5::Group& group, const std::string& name, const double* values, const std::vector<Index>& shape) {
  group.createDataSet(name, H5::PredType::IEEE_F32LE, space_of(shape), io::dataset_properties())
      .write(values, H5::PredType::NATIVE_DOUBLE);
}

void write_positions(H5::H5File& file, const std::string& name, const std::vector<Index>& positions) {
  const std::vector<std::int64_t> values(positions.begin(), positions.end());
  file.createDataSet(name, H5::PredType::STD_I64LE, space_of({static_cast<Index>(values.size())}),
                     io::dataset_properties())
      .write(values.data(), H5::PredType::NATIVE_INT64);
}

}  // namespace

struct DumpWriter::Impl {
  Impl(const std::filesystem::path& target, bool replace, int level)
      : path(target), output(target, {replace, io::kDumpFormat}), gzip(level) {}

  /// Runs one step of writing; a full disk shows as an HDF5 exception.
  template <class Step>
  void guarded(Step step) {
    try {
      step();
      output.check_written();
    } catch (const H5::Exception& error) {
      throw FileError(
          fmt::format("{}: cannot be written ({}); is the disk full?", path.string(), error.getDetailMsg()));
    }
  }

  std::filesystem::path path;
  io::OutputFile output;
  int gzip;
};

DumpWriter::DumpWriter(const DumpInfo& info, bool replace, int gzip)
    : impl_(std::make_unique<Impl>(info.path, replace, gzip)) {
  impl_->guarded([&] {
    H5::H5File& file = impl_->output.file();
    H5::Group root = file.openGroup("/");
    io::write_attribute(root, "format", std::string(io::kDumpFormat));
    io::write_attribute(root, "version", static_cast<long long>(io::kDumpVersion));
    for (const auto& [name, value] :
         {std::pair{"model", info.model}, {"source", info.source}, {"prompt", info.prompt}}) {
      if (!value.empty()) io::write_attribute(root, name, value);
    }
    io::write_attribute(root, "context_length", static_cast<long long>(info.context_length));
    write_positions(file, "query_positions", info.query_positions);
    if (!info.output_positions.empty()) write_positions(file, "output_positions", info.output_positions);
    file.createGroup("/layers");
  });
}

DumpWriter::~DumpWriter() = default;

void DumpWriter::write_layer(const LayerTensors& layer, ElementType type, const std::optional<Matrix>& output) {
  impl_->guarded([&] {
    H5::Group group = impl_->output.file().createGroup(io::layer_object(layer.layer));
    io::write_attribute(group, "scale", layer.attention.scale);
    io::write_attribute(group, "softcap", layer.attention.softcap);
    io::write_attribute(group, "sliding_window", static_cast<long long>(layer.attention.sliding_window));
    write_tensor(group, "q", layer.q, type, impl_->gzip);
    write_tensor(group, "k", layer.k, type, impl_->gzip);
    write_tensor(group, "v", layer.v, type, impl_->gzip);
    write_tensor(group, "w_o", layer.w_o, type, impl_->gzip);
    if (!layer.bias.empty()) write_reals(group, "b_o", layer.bias.data(), {layer.geometry.model_size});
    const auto& norms = layer.residual_norms;
    if (!norms.empty()) write_reals(group, "residual_norms", norms.data(), {layer.queries()});
    const auto& sinks = layer.attention.sinks;
    if (!sinks.empty()) write_reals(group, "sinks", sinks.data(), {layer.geometry.query_heads});
    const auto& rotation = layer.attention.rope_inv_freq;
    if (!rotation.empty()) {
      const std::vector<Index> shape{static_cast<Index>(rotation.size())};
      group.createDataSet("rope_inv_freq", H5::PredType::IEEE_F64LE, space_of(shape), io::dataset_properties())
          .write(rotation.data(), H5::PredType::NATIVE_DOUBLE);
    }
    if (output) write_reals(group, "output", output->data(), {output->rows(), output->cols()});
  });
}

void DumpWriter::commit() { impl_->output.commit(); }

}  // namespace laprox
