#include <fmt/format.h>
#include <hdf5_hl.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <span>

#include "base/text.h"
#include "io/hdf5.h"
#include "io/heap_check.h"
#include "io/report_layout.h"
#include "laprox/error.h"
#include "laprox/figures.h"
#include "laprox/report.h"

namespace laprox {

namespace {

class ReportReader {
 public:
  explicit ReportReader(const std::filesystem::path& path) : reader_(path, "a laprox report") {}

  Report read() {
    check_format();
    Report report;
    report.dumps = reader_.strings("/dump");
    report.policies = reader_.strings("/policy");
    report.budgets = reader_.strings("/budget");
    report.layers = count("layer");
    report.kv_heads = count("kv_head");
    report.query_heads = count("query_head");
    if (reader_.has("/segment")) report.segments = count("segment");
    if (reader_.has("/position")) report.positions = count("position");
    report.dump_hashes = reader_.strings("/dump_sha256");
    report.dump_models = reader_.strings("/dump_model");
    report.policy_specs = reader_.strings("/policy_spec");
    read_provenance(report);
    check_labels(report);
    for (const std::string& name : reader_.members("/")) read_array(name, report);
    for (const auto& [name, shape] : known_arrays()) {
      const auto found = report.arrays.find(name);
      const bool there = found != report.arrays.end();
      if (there ? found->second.dimensions == shape.dimensions : !shape.needed) continue;
      reader_.refuse("/" + name, "numbers over " + join(shape.dimensions, ", "),
                     there ? "numbers over " + join(found->second.dimensions, ", ") : "nothing, or something else");
    }
    check_numbers(report);
    check_alike(report);
    check_segments(report);
    check_twins(report);
    check_schedule(report);
    check_heads(report);
    if (reader_.has("/kept")) read_kept(report);
    return report;
  }

 private:
  struct Shape {
    std::vector<std::string> dimensions;
    bool needed = false;
    std::optional<double> least = std::nullopt;  ///< of counts, which are integers
  };

  /// The arrays that programs ask a report for by name.
  static const std::map<std::string, Shape>& known_arrays() {
    static const std::map<std::string, Shape> arrays = [] {
      const std::vector<std::string> cell{"dump", "policy", "budget"}, layer{"dump", "policy", "budget", "layer"};
      std::map<std::string, Shape> known{
          {"kept_pairs", {cell, true, 0}},
          {"kept_count", {{"dump", "policy", "budget", "layer", "kv_head"}, true, -1}},
          {"budget_tokens", {{"dump", "budget"}, true, 1}},
          {"context_length", {{"dump"}, true, 1}},
          {"is_oracle", {{"policy"}, false, -1}},
          {"on_budget", {cell, false, 0}},
          {"identical_to", {cell, false, -1}},
          {"tied_entries", {cell, false, -1}},
          {"unseen_entries", {layer, false, -1}},
          {"model_unseen_entries", {cell, false, -1}},
          {"cache_peak", {cell, false, -1}},
          {"cache_mean", {cell}},
          {"cuts", {cell, false, -1}},
          {"evictions", {cell, false, -1}},
          {"segment_start", {{"dump", "segment"}, false, -1}},
          {"segment_error", {{"dump", "policy", "budget", "layer", "segment"}}},
          {"model_segment_error", {{"dump", "policy", "budget", "segment"}}},
          {"evicted_at", {{"dump", "policy", "budget", "layer", "kv_head", "position"}, false, -1}},
          {"head_relative_error", {{"dump", "policy", "budget", "layer", "query_head"}}}};
      for (const Figure& figure : figures()) {
        // What reports have had since the first version; later figures may be absent.
        const std::string name = figure.name;
        const bool needed = name == "relative_error" || name == "retained_mass" || name == "cosine_mean";
        if (figure.layer_meaning) known[figure.layer_array()] = {layer, needed};
        if (figure.model_meaning) known[figure.model_array()] = {cell, needed};
      }
      return known;
    }();
    return arrays;
  }

  void check_labels(const Report& report) {
    const auto check = [&](const std::string& name, std::size_t found, std::size_t expected) {
      if (expected == 0 || found != expected) {
        reader_.refuse("/" + name, fmt::format("{} entries", std::max<std::size_t>(1, expected)),
                       std::to_string(found));
      }
    };
    check("dump", report.dumps.size(), report.dumps.size());
    check("policy", report.policies.size(), report.policies.size());
    check("budget", report.budgets.size(), report.budgets.size());
    check("dump_sha256", report.dump_hashes.size(), report.dumps.size());
    check("dump_model", report.dump_models.size(), report.dumps.size());
    check("policy_spec", report.policy_specs.size(), report.policies.size());
  }

  void check_format() {
    const H5::Group root = reader_.group("/");
    const auto format = reader_.text_attribute(root, "/", "format");
    if (format != io::kReportFormat) {
      reader_.refuse("/ attribute format", fmt::format("\"{}\"", io::kReportFormat),
                     format ? fmt::format("\"{}\"", *format) : "nothing", "is this a report of laprox sweep?");
    }
    const auto version = reader_.integer_attribute(root, "/", "version");
    if (version != io::kReportVersion) {
      reader_.refuse("/ attribute version", std::to_string(io::kReportVersion),
                     version ? std::to_string(*version) : "nothing");
    }
  }

  void read_provenance(Report& report) {
    const H5::Group root = reader_.group("/");
    for (int i = 0; i < root.getNumAttrs(); ++i) {
      const H5::Attribute attribute = root.openAttribute(static_cast<unsigned>(i));
      const std::string name = attribute.getName();
      if (name == "format" || attribute.getTypeClass() != H5T_STRING) continue;
      report.provenance[name] = reader_.text_attribute(root, "/", name).value();
    }
  }

  Index count(const std::string& dimension) { return reader_.extent("/" + dimension); }

  /// Reads a dataset whose dimensions are those of a report; others are left alone.
  void read_array(const std::string& name, Report& report) {
    if (name == "kept" || is_label(name)) return;
    const H5::DataSet dataset = reader_.dataset("/" + name);
    const H5T_class_t type = dataset.getTypeClass();
    if (type != H5T_FLOAT && type != H5T_INTEGER) return;
    if (dataset.getSpace().getSimpleExtentNdims() == 0) return;  // a number is over no dimension of a report
    ReportArray array;
    array.counts = type == H5T_INTEGER;
    array.dimensions = dimensions_of(dataset);
    array.meaning = reader_.text_attribute(dataset, "/" + name, "long_name").value_or("");
    std::vector<Index> expected;
    std::size_t size = 1;
    for (const std::string& dimension : array.dimensions) {
      expected.push_back(report.extent(dimension));
      size *= static_cast<std::size_t>(expected.back());
    }
    const std::vector<Index> shape = reader_.shape(dataset);
    if (shape != expected) {
      reader_.refuse("/" + name, "shape " + io::describe(expected), "shape " + io::describe(shape));
    }
    array.values.resize(size);
    dataset.read(array.values.data(), H5::PredType::NATIVE_DOUBLE);
    report.arrays[name] = std::move(array);
  }

  /// Counts are whole numbers, figures are finite, and no cell lacks the figures that every one has.
  void check_numbers(const Report& report) {
    const std::vector<double>& counts = report.array("kept_count").values;
    for (const auto& [name, shape] : known_arrays()) {
      const auto found = report.arrays.find(name);
      if (found == report.arrays.end()) continue;
      const ReportArray& array = found->second;
      if (shape.least && !array.counts) reader_.refuse("/" + name, "integers", "floats");
      for (std::size_t i = 0; i < array.values.size(); ++i) {
        const double value = array.values[i];
        if (shape.least && value < *shape.least) {
          reader_.refuse("/" + name, fmt::format("counts of {} or more", *shape.least), fmt::format("{}", value));
        }
        if (std::isinf(value)) {
          reader_.refuse("/" + name, "finite numbers", fmt::format("{} at element {}", value, i));
        }
        // A dump with fewer layers than another one in the report has neither figures nor counts of the others.
        const bool of_layer = shape.dimensions.back() == "layer";
        const auto heads = static_cast<std::size_t>(report.kv_heads);
        if (!shape.needed || !std::isnan(value) || (of_layer && counts[i * heads] < 0)) continue;
        reader_.refuse("/" + name, "a number in every cell", fmt::format("{} at element {}", value, i));
      }
    }
  }

  /// A figure may be missing in a dump, in a layer or at a budget, but there for all policies alike.
  void check_alike(const Report& report) {
    const std::size_t policies = report.policies.size();
    for (const auto& [name, shape] : known_arrays()) {
      const auto found = report.arrays.find(name);
      if (found == report.arrays.end() || shape.dimensions.size() < 3 || shape.dimensions[1] != "policy") continue;
      const std::vector<double>& values = found->second.values;
      const std::size_t each = values.size() / report.dumps.size() / policies;  // of a policy
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::size_t first = i / (policies * each) * policies * each + i % each;  // of the dump's first policy
        if (std::isnan(values[i]) == std::isnan(values[first])) continue;
        reader_.refuse("/" + name, "a number for every policy or for none",
                       fmt::format("{} at element {}, {} at element {}", values[first], first, values[i], i));
      }
    }
  }

  /// A segment that has queries has errors, in every layer that is there.
  void check_segments(const Report& report) {
    const auto starts = report.arrays.find("segment_start");
    if (starts == report.arrays.end()) return;
    const std::vector<double>& counts = report.array("kept_count").values;
    const auto segments = static_cast<std::size_t>(report.segments), heads = static_cast<std::size_t>(report.kv_heads);
    for (const char* name : {"segment_error", "model_segment_error"}) {
      const auto found = report.arrays.find(name);
      if (found == report.arrays.end()) continue;
      const std::vector<double>& values = found->second.values;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::size_t dump = i / (values.size() / report.dumps.size()), segment = i % segments;
        const bool absent = found->second.dimensions.size() > 4 && counts[i / segments * heads] < 0;
        if (!std::isnan(values[i]) || absent || starts->second.values[dump * segments + segment] < 0) continue;
        reader_.refuse(std::string("/") + name, "a number for every segment that has queries",
                       fmt::format("{} at element {}", values[i], i));
      }
    }
  }

  /// Indices of policies, by which tables look labels up.
  void check_twins(const Report& report) {
    const auto twins = report.arrays.find("identical_to");
    if (twins == report.arrays.end()) return;
    for (const double twin : twins->second.values) {
      if (twin >= -1 && twin < static_cast<double>(report.policies.size())) continue;
      reader_.refuse("/identical_to", fmt::format("-1 to {}", report.policies.size() - 1), fmt::format("{}", twin));
    }
  }

  /// Rows of heads that not every layer has end in missing entries; none lies between numbers, and a layer's heads are
  /// so many for each KV head.
  void check_heads(const Report& report) {
    const auto found = report.arrays.find("head_relative_error");
    if (found == report.arrays.end()) return;
    const std::vector<double>&errors = found->second.values, &counts = report.array("kept_count").values;
    const auto heads = static_cast<std::ptrdiff_t>(report.query_heads),
               kv_heads = static_cast<std::ptrdiff_t>(report.kv_heads);
    const auto missing = [](double value) { return std::isnan(value); };
    for (auto row = errors.begin(), count = counts.begin(); row != errors.end(); row += heads, count += kv_heads) {
      const auto stored = std::find_if(row, row + heads, missing) - row;
      const auto caches = std::count_if(count, count + kv_heads, [](double kept) { return kept >= 0; });
      const bool whole = std::all_of(row + stored, row + heads, missing);
      if (whole && (caches == 0 ? stored == 0 : stored > 0 && stored % caches == 0)) continue;
      reader_.refuse("/head_relative_error", "a number for every query head",
                     fmt::format("{} numbers before a missing one, for {} KV heads", stored, caches));
    }
  }

  /// Tables of a schedule say what its caches held; figures under a schedule must not pass for those of one cut.
  void check_schedule(const Report& report) {
    const bool named = report.provenance.contains("schedule"), held = report.arrays.contains("cache_peak");
    if (named && !held) {
      reader_.refuse("/cache_peak", "numbers, because attribute schedule says that caches were cut again", "nothing");
    }
    if (held && !named) reader_.refuse("/ attribute schedule", "a text, because /cache_peak is there", "nothing");
  }

  void read_kept(Report& report) {
    const ReportArray& counts = report.array("kept_count");
    const H5::DataSet starts = reader_.dataset("/kept/start"), tokens = reader_.dataset("/kept/tokens");
    std::vector<Index> expected;
    for (const std::string& dimension : counts.dimensions) expected.push_back(report.extent(dimension));
    const std::vector<Index> shape = reader_.shape(starts), length = reader_.shape(tokens);
    if (shape != expected || starts.getTypeClass() != H5T_INTEGER) {
      reader_.refuse("/kept/start", "integers of shape " + io::describe(expected), "shape " + io::describe(shape));
    }
    if (length.size() != 1 || tokens.getTypeClass() != H5T_INTEGER) {
      reader_.refuse("/kept/tokens", "integers of rank 1", "shape " + io::describe(length));
    }
    report.kept.starts.resize(counts.values.size());
    std::vector<std::int64_t> kept(
        static_cast<std::size_t>(length[0]));  // wider than they are, so that none is cut off
    starts.read(report.kept.starts.data(), H5::PredType::NATIVE_INT64);
    tokens.read(kept.data(), H5::PredType::NATIVE_INT64);
    const std::vector<double>& contexts = report.array("context_length").values;
    for (std::size_t i = 0; i < counts.values.size(); ++i) {
      const std::int64_t start = report.kept.starts[i];
      if (start < 0) continue;
      if (counts.values[i] < 0 || start > length[0] - static_cast<std::int64_t>(counts.values[i])) {
        reader_.refuse("/kept/start", fmt::format("places within the {} tokens", length[0]), std::to_string(start));
      }
      const std::size_t dump = i / (counts.values.size() / contexts.size());
      check_kept(std::span(kept).subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(counts.values[i])),
                 contexts[dump]);
    }
    report.kept.tokens.assign(kept.begin(), kept.end());
  }

  void check_kept(std::span<const std::int64_t> tokens, double context) const {
    std::int64_t before = -1;
    for (const std::int64_t token : tokens) {
      if (token <= before || static_cast<double>(token) >= context) {
        reader_.refuse("/kept/tokens", fmt::format("ascending tokens of each cell, from 0 to {}", context - 1),
                       fmt::format("{} after {}", token, before));
      }
      before = token;
    }
  }

  static bool is_label(const std::string& name) {
    return io::is_dimension(name) || name == "dump_sha256" || name == "dump_model" || name == "policy_spec";
  }

  /// The name of the first scale of a dimension, or nothing. H5DSget_scale_name is not asked: HDF5 1.10 frees memory
  /// twice in it where a scale's attribute CLASS is damaged.
  std::string scale_name(const H5::DataSet& dataset, unsigned dimension) const {
    hid_t scale = H5I_INVALID_HID;
    const auto keep = [](hid_t, unsigned, hid_t found, void* out) -> herr_t {
      H5Iinc_ref(found);
      *static_cast<hid_t*>(out) = found;
      return 1;
    };
    H5DSiterate_scales(dataset.getId(), dimension, nullptr, keep, &scale);
    if (scale < 0) return {};
    const H5::DataSet owner(scale);  // has a reference of its own
    H5Idec_ref(scale);
    return reader_.text_attribute(owner, owner.getObjName(), "NAME").value_or("");
  }

  /// What H5DSiterate_scales follows without a look.
  void check_scales(const H5::DataSet& dataset) const {
    if (!dataset.attrExists("DIMENSION_LIST")) return;
    const H5::Attribute list = dataset.openAttribute("DIMENSION_LIST");
    if (list.getTypeClass() != H5T_VLEN || list.getVarLenType().getSuper().getClass() != H5T_REFERENCE ||
        list.getVarLenType().getSuper().getSize() != sizeof(hobj_ref_t)) {
      reader_.refuse(dataset.getObjName(), "a DIMENSION_LIST of references", "one of another type");
    }
    io::check_heap(reader_, list.getId(), dataset.getObjName() + " attribute DIMENSION_LIST");
  }

  /// Names of the dimension scales attached to a dataset.
  std::vector<std::string> dimensions_of(const H5::DataSet& dataset) {
    std::vector<std::string> names;
    check_scales(dataset);
    for (int i = 0; i < dataset.getSpace().getSimpleExtentNdims(); ++i) {
      const std::string name = scale_name(dataset, static_cast<unsigned>(i));
      if (!io::is_dimension(name))
        reader_.refuse(dataset.getObjName(), "dimension scales of a report", "'" + name + "'");
      names.push_back(name);
    }
    return names;
  }

  io::Hdf5Reader reader_;
};

}  // namespace

Report read_report(const std::filesystem::path& path) {
  try {
    return ReportReader(path).read();
  } catch (const H5::Exception& error) {
    throw DumpError(path.string(), "file", "a laprox report", "a damaged file (" + error.getDetailMsg() + ")");
  }
}

}  // namespace laprox
