#include <fmt/format.h>
#include <hdf5_hl.h>

#include "io/output_file.h"
#include "io/report_layout.h"
#include "io/temporary.h"
#include "laprox/error.h"
#include "laprox/report.h"

namespace laprox {

namespace {

class ReportWriter {
 public:
  ReportWriter(const std::filesystem::path& path, const Report& report, bool replace)
      : report_(report), output_(path, {replace, io::kReportFormat}), root_(output_.file().openGroup("/")) {}

  void write() {
    io::write_attribute(root_, "format", std::string(io::kReportFormat));
    io::write_attribute(root_, "version", static_cast<long long>(io::kReportVersion));
    for (const auto& [name, value] : report_.provenance) io::write_attribute(root_, name, value);
    write_labels("dump", report_.dumps);
    write_labels("policy", report_.policies);
    write_labels("budget", report_.budgets);
    for (const char* dimension : io::kNumberDimensions) write_numbers(dimension, report_.extent(dimension));
    for (const char* dimension : io::kDecodingDimensions) {
      if (report_.extent(dimension) > 0) write_numbers(dimension, report_.extent(dimension));
    }
    write_text("dump_sha256", "dump", report_.dump_hashes);
    write_text("dump_model", "dump", report_.dump_models);
    write_text("policy_spec", "policy", report_.policy_specs);
    for (const auto& [name, array] : report_.arrays) write_array(name, array);
    if (!report_.kept.starts.empty()) write_kept();
    scales_.clear();
    root_.close();
    output_.commit();
  }

 private:
  H5::DataSet write_strings(const std::string& name, const std::vector<std::string>& values) {
    std::size_t longest = 1;
    for (const std::string& value : values) longest = std::max(longest, value.size());
    std::string block;
    for (const std::string& value : values) block += value + std::string(longest - value.size(), '\0');
    const hsize_t size = values.size();
    const H5::StrType type = io::text_type(longest);
    H5::DataSet dataset = root_.createDataSet(name, type, H5::DataSpace(1, &size), io::dataset_properties());
    dataset.write(block.data(), type);
    io::write_attribute(dataset, "_Encoding", std::string("utf-8"));  // so that xarray makes text of it, not bytes
    return dataset;
  }

  void make_scale(const std::string& dimension, H5::DataSet dataset) {
    check(H5DSset_scale(dataset.getId(), dimension.c_str()));
    scales_.emplace(dimension, dataset);
  }

  void write_labels(const std::string& dimension, const std::vector<std::string>& labels) {
    make_scale(dimension, write_strings(dimension, labels));
  }

  void write_numbers(const std::string& dimension, Index count) {
    std::vector<std::int64_t> numbers(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<std::int64_t>(i);
    const hsize_t size = numbers.size();
    H5::DataSet dataset =
        root_.createDataSet(dimension, H5::PredType::STD_I64LE, H5::DataSpace(1, &size), io::dataset_properties());
    dataset.write(numbers.data(), H5::PredType::NATIVE_INT64);
    make_scale(dimension, dataset);
  }

  void attach(const H5::DataSet& dataset, const std::vector<std::string>& dimensions) {
    for (std::size_t i = 0; i < dimensions.size(); ++i) {
      check(H5DSattach_scale(dataset.getId(), scales_.at(dimensions[i]).getId(), static_cast<unsigned>(i)));
    }
  }

  void write_text(const std::string& name, const std::string& dimension, const std::vector<std::string>& values) {
    attach(write_strings(name, values), {dimension});
  }

  H5::DataSpace space(const std::vector<std::string>& dimensions) const {
    std::vector<hsize_t> extents;
    for (const std::string& dimension : dimensions) extents.push_back(static_cast<hsize_t>(report_.extent(dimension)));
    return H5::DataSpace(static_cast<int>(extents.size()), extents.data());
  }

  void write_array(const std::string& name, const ReportArray& array) {
    const H5::DataType stored = array.counts ? H5::PredType::STD_I64LE : H5::PredType::IEEE_F64LE;
    H5::DSetCreatPropList properties = io::dataset_properties();
    if (array.dimensions.back() == "position") compress(properties, array);
    H5::DataSet dataset = root_.createDataSet(name, stored, space(array.dimensions), properties);
    dataset.write(array.values.data(), H5::PredType::NATIVE_DOUBLE);
    io::write_attribute(dataset, "long_name", array.meaning);
    attach(dataset, array.dimensions);
  }

  /// One number per token of every head: long runs of equal ones.
  void compress(H5::DSetCreatPropList& properties, const ReportArray& array) const {
    std::vector<hsize_t> chunk(array.dimensions.size(), 1);
    chunk.back() = static_cast<hsize_t>(report_.positions);
    chunk[chunk.size() - 2] = static_cast<hsize_t>(report_.kv_heads);
    properties.setChunk(static_cast<int>(chunk.size()), chunk.data());
    properties.setShuffle();
    properties.setDeflate(4);
  }

  void write_kept() {
    H5::Group group = output_.file().createGroup("/kept");
    const std::vector<std::string>& dimensions = report_.array("kept_count").dimensions;
    H5::DataSet starts =
        group.createDataSet("start", H5::PredType::STD_I64LE, space(dimensions), io::dataset_properties());
    starts.write(report_.kept.starts.data(), H5::PredType::NATIVE_INT64);
    attach(starts, dimensions);
    const hsize_t size = report_.kept.tokens.size(), chunk = std::max<hsize_t>(1, std::min<hsize_t>(size, 1 << 18));
    H5::DSetCreatPropList properties = io::dataset_properties();
    properties.setChunk(1, &chunk);
    properties.setShuffle();
    properties.setDeflate(4);
    group.createDataSet("tokens", H5::PredType::STD_I32LE, H5::DataSpace(1, &size), properties)
        .write(report_.kept.tokens.data(), H5::PredType::NATIVE_INT32);
  }

  static void check(herr_t status) {
    if (status < 0) throw H5::DataSetIException("H5DS", "a dimension scale cannot be written");
  }

  const Report& report_;
  io::OutputFile output_;
  H5::Group root_;
  std::map<std::string, H5::DataSet> scales_;
};

}  // namespace

void write_report(const std::filesystem::path& path, const Report& report, bool replace) {
  try {
    ReportWriter(path, report, replace).write();
  } catch (const H5::Exception& error) {
    throw FileError(fmt::format("{}: cannot be written ({}); is the disk full?", path.string(), error.getDetailMsg()));
  }
}

void check_writable(const std::filesystem::path& path, bool replace, const std::vector<std::filesystem::path>& inputs) {
  io::check_output(path, {replace, io::kReportFormat}, inputs);
  io::remove_temporary(io::make_temporary(path));
}

}  // namespace laprox
