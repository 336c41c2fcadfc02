#include "io/candidate_reader.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/convert.h"
#include "base/text.h"
#include "io/dump_layout.h"
#include "io/score_layout.h"
#include "laprox/error.h"
#include "laprox/verify.h"

namespace laprox::io {

namespace {

/// `ranking` follows from the scores: it may be there and is not judged.
const std::vector<std::string> kDatasets{"scores", "column_norms", "column_sums", "value_norms",
                                         "output", "kept",         "ranking"};

using KeptOfHeads = std::vector<std::vector<std::uint8_t>>;

/// Whether a `kept` dataset lists tokens: its integers are wider than a mask's bytes.
bool lists_tokens(const H5::DataSet& dataset) {
  return dataset.getTypeClass() == H5T_INTEGER && dataset.getDataType().getSize() > 1;
}

ElementType type_named(const std::string& name, const Hdf5Reader& reader) {
  for (ElementType type : {ElementType::float16, ElementType::bfloat16, ElementType::float32, ElementType::float64}) {
    if (to_string(type) == name) return type;
  }
  reader.refuse("/ attribute precision", "float16, bfloat16, float32 or float64", "\"" + name + "\"");
}

}  // namespace

CandidateReader::CandidateReader(const std::filesystem::path& path, const DumpReader& dump)
    : reader_(path, "results of a kernel in the layout of laprox score") {
  context_ = dump.info().context_length;
  try {
    check_format(dump);
    read_attributes();
    check_layers(dump.info());
    check_output_positions(dump.info());
  } catch (const H5::Exception& error) {
    reader_.refuse("file", "a readable structure", "a damaged file (" + error.getDetailMsg() + ")");
  }
}

std::string CandidateReader::object(Index layer, const std::string& dataset) { return layer_object(layer, dataset); }

void CandidateReader::refuse(const std::string& dataset, const std::string& expected, const std::string& found) const {
  const auto layer = std::find_if(layers_.begin(), layers_.end(), [&](Index n) { return has(n, dataset); });
  reader_.refuse(object(layer == layers_.end() ? 0 : *layer, dataset), expected, found);
}

bool CandidateReader::has(const std::string& dataset) const {
  return std::any_of(layers_.begin(), layers_.end(), [&](Index layer) { return has(layer, dataset); });
}

void CandidateReader::check_format(const DumpReader& dump) {
  const H5::Group root = reader_.group("/");
  const auto format = reader_.text_attribute(root, "/", "format");
  if (format != kScoreFormat) {
    reader_.refuse("/ attribute format", fmt::format("\"{}\"", kScoreFormat),
                   format ? fmt::format("\"{}\"", *format) : "nothing",
                   "data/README.md documents the layout of a kernel's results");
  }
  const auto version = reader_.integer_attribute(root, "/", "version");
  if (version != kScoreVersion) {
    reader_.refuse("/ attribute version", std::to_string(kScoreVersion),
                   version ? std::to_string(*version) : "nothing");
  }
  const auto hash = reader_.text_attribute(root, "/", "dump_sha256");
  if (!hash) return;
  const std::string expected = dump.content_hash();
  if (*hash != expected) {
    reader_.refuse("/ attribute dump_sha256", expected + ", that of " + dump.info().path.string(), *hash,
                   "these are results on another dump");
  }
}

void CandidateReader::read_attributes() {
  const H5::Group root = reader_.group("/");
  policy_ = reader_.text_attribute(root, "/", "policy");
  if (const auto name = reader_.text_attribute(root, "/", "precision")) precision_ = type_named(*name, reader_);
  const auto labels = reader_.text_attribute(root, "/", "budgets");
  if (!labels) return;
  for (const std::string& label : split(*labels, ',')) {
    try {
      budgets_.push_back(parse_budget(label));
    } catch (const UsageError& error) {
      reader_.refuse("/ attribute budgets", "budgets with commas between them, such as \"5%,128\"",
                     fmt::format("\"{}\" ({})", *labels, error.what()));
    }
  }
}

void CandidateReader::check_layers(const DumpInfo& dump) {
  const Index count = static_cast<Index>(dump.layers.size());
  for (const std::string& name : reader_.members("/layers")) {
    const auto layer = parse_integer(name);
    if (!layer || *layer < 0 || *layer >= count || std::to_string(*layer) != name) {
      reader_.refuse("/layers/" + name, fmt::format("a layer of the dump, 0 to {}", count - 1), "'" + name + "'");
    }
    layers_.push_back(static_cast<Index>(*layer));
  }
  std::sort(layers_.begin(), layers_.end());
  bool judged = false;
  for (const Index layer : layers_) {
    for (const std::string& name : reader_.members(layer_object(layer))) {
      check_dataset(layer, name, dump);
      judged = judged || name != "ranking";
    }
  }
  if (!judged) {
    reader_.refuse("/layers", "at least one layer with one of " + join(kDatasets, ", "),
                   layers_.empty() ? "no layer" : "none of them");
  }
}

void CandidateReader::check_dataset(Index layer, const std::string& name, const DumpInfo& dump) {
  if (std::find(kDatasets.begin(), kDatasets.end(), name) == kDatasets.end()) {
    reader_.refuse(object(layer, name), "one of " + join(kDatasets, ", "), "'" + name + "'",
                   fmt::format("did you mean '{}'?", nearest(name, kDatasets)));
  }
  const LayerGeometry& g = dump.layers[layer].geometry;
  const Index context = dump.context_length;
  std::vector<Index> expected{g.query_heads, context};
  std::string meaning = "[query_heads, C]";
  if (name == "scores" || name == "ranking") expected = {g.kv_heads, context}, meaning = "[kv_heads, C]";
  if (name == "output") {
    if (!reader_.has("/output_positions")) {
      reader_.refuse("/output_positions", "the positions of the queries whose output is stored", "nothing");
    }
    expected = {static_cast<Index>(reader_.integers("/output_positions").size()), g.model_size}, meaning = "[M, D]";
  }
  if (name == "kept") {
    if (budgets_.empty()) {
      reader_.refuse("/ attribute budgets", "the budgets of /layers/<i>/kept, such as \"5%,128\"", "nothing");
    }
    expected = {static_cast<Index>(budgets_.size()), g.kv_heads, context}, meaning = "[budgets, kv_heads, C]";
  }
  const H5::DataSet dataset = reader_.dataset(object(layer, name));
  const std::vector<Index> shape = reader_.shape(dataset);
  if (name == "kept" && lists_tokens(dataset) && shape.size() == 3) {
    expected[2] = std::min(shape[2], context), meaning = "[budgets, kv_heads, up to C]";
  }
  if (shape != expected) {
    reader_.refuse(object(layer, name), "shape " + meaning + " = " + describe(expected),
                   shape.empty() ? "a scalar" : "shape " + describe(shape));
  }
  if (name != "kept" && name != "ranking") {
    reader_.array(object(layer, name));  // refuses element types that it does not know
  } else if (name == "kept") {
    const H5T_class_t type = dataset.getTypeClass();
    if (!lists_tokens(dataset) && ((type != H5T_INTEGER && type != H5T_ENUM) || dataset.getDataType().getSize() != 1)) {
      reader_.refuse(object(layer, name),
                     "uint8 or bool: 1 where the token is kept, else 0; or wider integers: the kept tokens, then -1",
                     "another type");
    }
  }
}

void CandidateReader::check_output_positions(const DumpInfo& dump) {
  if (!reader_.has("/output_positions")) return;
  output_positions_ = reader_.integers("/output_positions");
  const auto& stored = dump.query_positions;
  for (std::size_t i = 0; i < output_positions_.size(); ++i) {
    const Index position = output_positions_[i];
    if (i > 0 && position <= output_positions_[i - 1]) {
      reader_.refuse("/output_positions", "strictly ascending positions",
                     fmt::format("{} after {}", position, output_positions_[i - 1]));
    }
    if (!std::binary_search(stored.begin(), stored.end(), position)) {
      reader_.refuse("/output_positions", "positions whose queries the dump stores",
                     fmt::format("{}, whose query it does not store", position));
    }
  }
}

Matrix CandidateReader::read(Index layer, const std::string& dataset) const {
  const StoredArray stored = reader_.array(object(layer, dataset));
  Matrix values(stored.shape.at(0), stored.shape.at(1));
  if (values.size() == 0) return values;
  std::vector<std::byte> raw(static_cast<std::size_t>(values.size() * size_of(stored.type)));
  reader_.read_raw(stored, object(layer, dataset), raw.data());
  convert(raw.data(), stored.type, values.data(), values.size());
  return values;
}

Matrix CandidateReader::read_finite(Index layer, const std::string& dataset) const {
  Matrix values = read(layer, dataset);
  if (const auto bad = first_non_finite(values.data(), values.size())) {
    reader_.refuse(
        object(layer, dataset), "finite numbers",
        fmt::format("{} of KV head {}, token {}", values.data()[*bad], *bad / values.cols(), *bad % values.cols()));
  }
  return values;
}

std::vector<std::vector<std::vector<std::uint8_t>>> CandidateReader::read_kept(Index layer) const {
  const std::string name = object(layer, "kept");
  const H5::DataSet dataset = reader_.dataset(name);
  const std::vector<Index> shape = reader_.shape(dataset);
  // Wider than they are stored, so that a negative number stays one and a huge one stays out of range.
  std::vector<std::int64_t> values(static_cast<std::size_t>(shape[0] * shape[1] * shape[2]));
  try {
    dataset.read(values.data(), H5::PredType::NATIVE_INT64);
  } catch (const H5::Exception& error) {
    reader_.refuse(name, "readable data", "a damaged or cut-off file (" + error.getDetailMsg() + ")");
  }
  const bool lists = lists_tokens(dataset);
  std::vector<KeptOfHeads> kept(static_cast<std::size_t>(shape[0]));
  const std::int64_t* next = values.data();
  for (KeptOfHeads& heads : kept) {
    for (Index head = 0; head < shape[1]; ++head, next += shape[2]) {
      const std::span<const std::int64_t> of_head(next, static_cast<std::size_t>(shape[2]));
      heads.push_back(lists ? mask_of_list(of_head, name, head) : mask_of(of_head, name, head));
    }
  }
  return kept;
}

std::vector<std::uint8_t> CandidateReader::mask_of(std::span<const std::int64_t> values, const std::string& name,
                                                   Index head) const {
  const auto bad =
      std::find_if(values.begin(), values.end(), [](std::int64_t value) { return value < 0 || value > 1; });
  if (bad != values.end()) {
    reader_.refuse(name, "1 where the token is kept, else 0",
                   fmt::format("{} at KV head {}, token {}", *bad, head, bad - values.begin()));
  }
  return {values.begin(), values.end()};
}

std::vector<std::uint8_t> CandidateReader::mask_of_list(std::span<const std::int64_t> tokens, const std::string& name,
                                                        Index head) const {
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(context_));
  bool ended = false;
  for (const std::int64_t token : tokens) {
    ended = ended || token == -1;
    if (token == -1) continue;
    if (ended || token < 0 || token >= context_) {
      reader_.refuse(name, fmt::format("tokens from 0 to {} and nothing but -1 behind the last", context_ - 1),
                     fmt::format("{} at KV head {}", token, head));
    }
    std::uint8_t& kept = mask[token];
    if (kept == 1)
      reader_.refuse(name, "each kept token once", fmt::format("token {} twice at KV head {}", token, head));
    kept = 1;
  }
  return mask;
}

}  // namespace laprox::io

namespace laprox {

Verification verify_candidate(const DumpReader& dump, const std::filesystem::path& candidate,
                              const VerifyOptions& options, const Progress& progress) {
  return verify_candidate(dump, io::CandidateReader(candidate, dump), options, progress);
}

}  // namespace laprox
