#include "io/dump_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/text.h"
#include "laprox/error.h"

namespace laprox::io {

namespace {

/// The sizes that all layers of a file share; the first layer sets T and D.
struct FileSizes {
  Index queries = 0, outputs = 0;
  Index tokens = 0, model_size = 0;
};

class StructureReader {
 public:
  explicit StructureReader(const Hdf5Reader& reader) : reader_(reader), root_(reader.group("/")) {}

  DumpInfo read() {
    check_format();
    DumpInfo info;
    info.path = reader_.path();
    info.model = reader_.text_attribute(root_, "/", "model").value_or("");
    info.source = reader_.text_attribute(root_, "/", "source").value_or("");
    info.prompt = reader_.text_attribute(root_, "/", "prompt").value_or("");
    check_names();
    // Sizes first: what a file declares must fit together before anything that large is read.
    sizes_.queries = reader_.extent("/query_positions");
    if (sizes_.queries == 0) reader_.refuse("/query_positions", "at least one position", "none");
    if (reader_.has("/output_positions")) sizes_.outputs = reader_.extent("/output_positions");
    const Index layers = count_layers();
    for (Index layer = 0; layer < layers; ++layer) layers_.push_back(read_layer(layer));
    info.layers = layers_;
    info.tokens = sizes_.tokens;
    check_extent("/query_positions", sizes_.queries, sizes_.tokens, "T");
    check_extent("/output_positions", sizes_.outputs, sizes_.queries, "N");
    info.query_positions = reader_.integers("/query_positions");
    if (sizes_.outputs > 0) info.output_positions = reader_.integers("/output_positions");
    info.context_length = read_context_length();
    check_positions("/query_positions", info.query_positions);
    check_positions("/output_positions", info.output_positions);
    check_outputs(info);
    check_token_ids();
    return info;
  }

 private:
  void check_extent(const std::string& name, Index found, Index most, const std::string& symbol) {
    if (found > most)
      reader_.refuse(name, fmt::format("at most {} = {} positions", symbol, most), std::to_string(found));
  }

  /// A name that nobody reads is a mistake that would otherwise change every result without a word.
  void check_names() {
    static const std::vector<std::string> known{"layers", "query_positions", "output_positions", "token_ids"};
    for (const std::string& name : reader_.members("/")) check_object("/" + name, name, known, {});
    static const std::vector<std::string> attributes{"format", "version", "context_length",
                                                     "model",  "source",  "prompt"};
    static const std::map<std::string, std::string> elsewhere = [] {
      std::map<std::string, std::string> names;
      for (const char* name : {"context_len", "ctx_len", "prompt_len", "prompt_length", "prompt_tokens", "num_prompt",
                               "num_decoded", "decoded_tokens"}) {
        names[name] = "context_length";
      }
      // A layer's own at the root would be ignored for every layer.
      for (const std::string& name : layer_attributes()) names[name] = "/layers/<i> attribute " + name;
      for (const auto& [name, meant] : layer_aliases()) names[name] = "/layers/<i> attribute " + meant;
      return names;
    }();
    check_attributes("/", root_, attributes, elsewhere);
  }

  static const std::vector<std::string>& layer_attributes() {
    static const std::vector<std::string> names{"scale", "softcap", "sliding_window", "kv_source"};
    return names;
  }

  static const std::map<std::string, std::string>& layer_aliases() {
    static const std::map<std::string, std::string> names{
        {"softmax_scale", "scale"},       {"scaling", "scale"},
        {"logit_softcapping", "softcap"}, {"attn_logit_softcapping", "softcap"},
        {"window", "sliding_window"},     {"window_size", "sliding_window"}};
    return names;
  }

  void check_layer_names(Index layer, const H5::Group& group) {
    static const std::vector<std::string> datasets{
        "q", "k", "v", "w_o", "b_o", "sinks", "rope_inv_freq", "output", "residual_norms"};
    static const std::map<std::string, std::string> datasets_elsewhere{
        {"s_aux", "sinks"}, {"bias", "b_o"}, {"o_proj", "w_o"}, {"inv_freq", "rope_inv_freq"}};
    const std::string name = layer_object(layer);
    for (const std::string& member : reader_.members(name)) {
      check_object(name + "/" + member, member, datasets, datasets_elsewhere);
    }
    check_attributes(name, group, layer_attributes(), layer_aliases());
  }

  void check_object(const std::string& object, const std::string& name, const std::vector<std::string>& known,
                    const std::map<std::string, std::string>& elsewhere) {
    if (std::find(known.begin(), known.end(), name) != known.end()) return;
    const auto alias = elsewhere.find(name);
    reader_.refuse(object, "one of " + join(known, ", "), "'" + name + "'",
                   fmt::format("did you mean '{}'?", alias == elsewhere.end() ? nearest(name, known) : alias->second));
  }

  /// The known name, or the place, that a name stands for or nearly has; nothing where it is a note of the writer's.
  static std::optional<std::string> meant_attribute(const std::string& name, const std::vector<std::string>& known,
                                                    const std::map<std::string, std::string>& elsewhere) {
    if (std::find(known.begin(), known.end(), name) != known.end()) return std::nullopt;
    if (const auto alias = elsewhere.find(name); alias != elsewhere.end()) return alias->second;
    if (const auto near = near_miss(name, known)) return near;
    constexpr std::size_t long_name = 10;  // words nearer to a shorter one, such as "score" to "scale", may be notes
    std::vector<std::string> aliases;
    for (const auto& [alias, meant] : elsewhere) {
      if (alias.size() >= long_name) aliases.push_back(alias);
    }
    const auto near = near_miss(name, aliases);
    return near ? std::optional(elsewhere.at(*near)) : std::nullopt;
  }

  /// Attributes of other names are the writer's own notes; those that nearly have a known name are not.
  void check_attributes(const std::string& owner_name, const H5::H5Object& owner, const std::vector<std::string>& known,
                        const std::map<std::string, std::string>& elsewhere) {
    for (const std::string& name : reader_.attributes(owner)) {
      const auto meant = meant_attribute(name, known, elsewhere);
      if (!meant) continue;
      reader_.refuse(owner_name + " attribute " + name, "one of " + join(known, ", "), "'" + name + "'",
                     fmt::format("did you mean '{}'?", *meant));
    }
  }

  void check_format() {
    const auto format = reader_.text_attribute(root_, "/", "format");
    if (format != kDumpFormat) {
      reader_.refuse("/ attribute format", fmt::format("\"{}\"", kDumpFormat),
                     format ? fmt::format("\"{}\"", *format) : "nothing", "is this a laprox dump?");
    }
    const auto version = reader_.integer_attribute(root_, "/", "version");
    if (version != kDumpVersion) {
      reader_.refuse("/ attribute version", std::to_string(kDumpVersion),
                     version ? std::to_string(*version) : "nothing", "this laprox reads version 1 only");
    }
  }

  Index read_context_length() {
    const std::string object = "/ attribute context_length", range = fmt::format("1 to T = {}", sizes_.tokens);
    const auto length = reader_.integer_attribute(root_, "/", "context_length");
    if (!length) reader_.refuse(object, range, "nothing");
    if (*length < 1 || *length > sizes_.tokens) reader_.refuse(object, range, std::to_string(*length));
    return static_cast<Index>(*length);
  }

  Index count_layers() {
    const std::vector<std::string> names = reader_.members("/layers");
    const std::set<std::string> present(names.begin(), names.end());
    if (names.empty()) reader_.refuse("/layers", "at least one layer", "none");
    for (std::size_t layer = 0; layer < names.size(); ++layer) {
      if (present.contains(std::to_string(layer))) continue;
      const auto stray = std::find_if(names.begin(), names.end(), [&](const std::string& name) {
        return name.empty() || !std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; }) ||
               name != std::to_string(std::strtoull(name.c_str(), nullptr, 10)) ||
               std::strtoull(name.c_str(), nullptr, 10) >= names.size();
      });
      reader_.refuse("/layers", fmt::format("layers 0 to {} without gaps", names.size() - 1),
                     fmt::format("no layer {}, but '{}'", layer, stray == names.end() ? names.front() : *stray));
    }
    return static_cast<Index>(names.size());
  }

  /// One tensor of a layer; its shape must equal `expected`, where -1 stands for any size above 0.
  StoredArray tensor(Index layer, const std::string& name, const std::vector<Index>& expected,
                     const std::string& meaning) {
    const std::string object = layer_object(layer, name);
    StoredArray array = reader_.array(object);
    bool fits = array.shape.size() == expected.size();
    for (std::size_t i = 0; fits && i < expected.size(); ++i) {
      fits = array.shape[i] > 0 && (expected[i] < 0 || array.shape[i] == expected[i]);
    }
    if (!fits) {
      std::string sizes = describe(expected);
      for (std::size_t at; (at = sizes.find("-1")) != std::string::npos;) sizes.replace(at, 2, "any");
      reader_.refuse(object, fmt::format("shape {} = {}", meaning, sizes),
                     array.shape.empty() ? "a scalar" : "shape " + describe(array.shape), transposed(array.shape));
    }
    return array;
  }

  /// Frameworks also lay heads behind tokens, and that shape is answered with what to do.
  std::string transposed(const std::vector<Index>& shape) const {
    const bool heads_last =
        shape.size() == 3 && (shape[0] == sizes_.queries || shape[0] == sizes_.tokens) && shape[0] != shape[1];
    return heads_last ? "this looks like [tokens, heads, d]; store heads first, as transpose(0, 1) makes them" : "";
  }

  LayerSummary read_layer(Index layer) {
    LayerSummary summary;
    LayerGeometry& geometry = summary.geometry;
    const Index any = -1, known_tokens = layer == 0 ? any : sizes_.tokens;
    const Index known_model_size = layer == 0 ? any : sizes_.model_size;
    const H5::Group group = reader_.group(layer_object(layer));
    check_layer_names(layer, group);

    const StoredArray q = tensor(layer, "q", {any, sizes_.queries, any}, "[H_q, N, d]");
    geometry.query_heads = q.shape[0];
    geometry.head_size = q.shape[2];
    const StoredArray k = tensor(layer, "k", {any, known_tokens, geometry.head_size}, "[H_kv, T, d]");
    geometry.kv_heads = k.shape[0];
    sizes_.tokens = k.shape[1];
    if (geometry.query_heads % geometry.kv_heads != 0) {
      reader_.refuse(layer_object(layer), "H_q to be a multiple of H_kv",
                     fmt::format("H_q = {}, H_kv = {}", geometry.query_heads, geometry.kv_heads));
    }
    const StoredArray v = tensor(layer, "v", {geometry.kv_heads, sizes_.tokens, any}, "[H_kv, T, d_v]");
    geometry.value_size = v.shape[2];
    const StoredArray w_o =
        tensor(layer, "w_o", {geometry.query_heads * geometry.value_size, known_model_size}, "[H_q * d_v, D]");
    sizes_.model_size = geometry.model_size = w_o.shape[1];
    summary.q_type = q.type;
    summary.k_type = k.type;
    summary.v_type = v.type;
    summary.w_o_type = w_o.type;
    read_optional(layer, summary);
    read_attention(layer, group, summary);
    return summary;
  }

  void read_optional(Index layer, LayerSummary& summary) {
    const LayerGeometry& geometry = summary.geometry;
    summary.has_bias = reader_.has(layer_object(layer, "b_o"));
    if (summary.has_bias) tensor(layer, "b_o", {geometry.model_size}, "[D]");
    if (reader_.has(layer_object(layer, "sinks"))) {
      tensor(layer, "sinks", {geometry.query_heads}, "[H_q]");
      summary.attention.sinks = reader_.reals(layer_object(layer, "sinks"));
    }
    if (reader_.has(layer_object(layer, "rope_inv_freq"))) read_rotation(layer, summary);
    summary.has_residual_norms = reader_.has(layer_object(layer, "residual_norms"));
    if (summary.has_residual_norms) tensor(layer, "residual_norms", {sizes_.queries}, "[N]");
    summary.has_output = reader_.has(layer_object(layer, "output"));
    if (!summary.has_output) return;
    if (sizes_.outputs == 0) {
      reader_.refuse("/output_positions", "the positions of " + layer_object(layer, "output"), "nothing");
    }
    tensor(layer, "output", {sizes_.outputs, geometry.model_size}, "[M, D]");
  }

  void read_rotation(Index layer, LayerSummary& summary) {
    const std::string object = layer_object(layer, "rope_inv_freq");
    const StoredArray stored = tensor(layer, "rope_inv_freq", {-1}, "[r / 2]");
    if (2 * stored.shape[0] > summary.geometry.head_size) {
      reader_.refuse(object, fmt::format("at most d / 2 = {} elements", summary.geometry.head_size / 2),
                     std::to_string(stored.shape[0]));
    }
    summary.attention.rope_inv_freq = reader_.reals(object);
  }

  void read_attention(Index layer, const H5::Group& group, LayerSummary& summary) {
    const std::string name = layer_object(layer);
    AttentionForm& form = summary.attention;
    form.scale = reader_.real_attribute(group, name, "scale")
                     .value_or(1.0 / std::sqrt(static_cast<double>(summary.geometry.head_size)));
    if (!std::isfinite(form.scale) || form.scale <= 0) {
      reader_.refuse(name + " attribute scale", "a finite number above 0", fmt::format("{}", form.scale));
    }
    form.softcap = reader_.real_attribute(group, name, "softcap").value_or(0);
    if (!std::isfinite(form.softcap) || form.softcap < 0) {
      reader_.refuse(name + " attribute softcap", "0 (none) or a finite number above 0",
                     fmt::format("{}", form.softcap));
    }
    const long long window = reader_.integer_attribute(group, name, "sliding_window").value_or(0);
    read_source(layer, group, summary);
    if (window < 0) reader_.refuse(name + " attribute sliding_window", "0 (none) or more", std::to_string(window));
    form.sliding_window = static_cast<Index>(window);
  }

  void read_source(Index layer, const H5::Group& group, LayerSummary& summary) {
    const std::string object = layer_object(layer) + " attribute kv_source";
    const auto source = reader_.integer_attribute(group, layer_object(layer), "kv_source");
    if (!source) return;
    if (*source < 0 || *source >= layer) {
      reader_.refuse(object, "a layer before this one", std::to_string(*source));
    }
    summary.kv_source = static_cast<Index>(*source);
    if (layers_[summary.kv_source].kv_source >= 0) {
      reader_.refuse(object, "a layer that has a cache of its own", std::to_string(*source));
    }
    const LayerGeometry &here = summary.geometry, &there = layers_[summary.kv_source].geometry;
    if (here.kv_heads != there.kv_heads || here.head_size != there.head_size || here.value_size != there.value_size) {
      reader_.refuse(object, "a layer whose k and v have the shapes of these", std::to_string(*source));
    }
  }

  void check_positions(const std::string& name, const std::vector<Index>& positions) {
    for (std::size_t i = 0; i < positions.size(); ++i) {
      if (positions[i] < 0 || positions[i] >= sizes_.tokens) {
        reader_.refuse(name, fmt::format("positions from 0 to T - 1 = {}", sizes_.tokens - 1),
                       fmt::format("{} at element {}", positions[i], i));
      }
      if (i > 0 && positions[i] <= positions[i - 1]) {
        reader_.refuse(name, "strictly ascending positions",
                       fmt::format("{} after {} at element {}", positions[i], positions[i - 1], i));
      }
    }
  }

  void check_outputs(const DumpInfo& info) {
    for (Index position : info.output_positions) {
      if (!std::binary_search(info.query_positions.begin(), info.query_positions.end(), position)) {
        reader_.refuse("/output_positions", "a subset of /query_positions",
                       fmt::format("{}, which is not among them", position));
      }
    }
  }

  void check_token_ids() {
    if (!reader_.has("/token_ids")) return;
    const std::vector<Index> extents = reader_.shape(reader_.dataset("/token_ids"));
    if (extents != std::vector<Index>{sizes_.tokens}) {
      reader_.refuse("/token_ids", fmt::format("shape [T] = [{}]", sizes_.tokens), "shape " + describe(extents));
    }
  }

  const Hdf5Reader& reader_;
  H5::Group root_;
  FileSizes sizes_;
  std::vector<LayerSummary> layers_;
};

}  // namespace

std::string layer_object(Index layer, const std::string& tensor) {
  return fmt::format("/layers/{}{}{}", layer, tensor.empty() ? "" : "/", tensor);
}

DumpInfo read_structure(const Hdf5Reader& reader) {
  try {
    return StructureReader(reader).read();
  } catch (const H5::Exception& error) {
    reader.refuse("file", "a readable structure", "a damaged file (" + error.getDetailMsg() + ")");
  }
}

}  // namespace laprox::io
