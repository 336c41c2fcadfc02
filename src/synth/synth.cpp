#include "laprox/synth.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/parallel.h"
#include "base/scatter.h"
#include "base/text.h"
#include "laprox/dump_writer.h"
#include "laprox/error.h"
#include "synth/adversarial.h"

namespace laprox {

namespace {

struct Preset {
  const char* name;
  Index layers;
  LayerGeometry geometry;
  double softcap = 0;
  Index sliding_window = 0;
  bool alternating = false, sinks = false, bias = false;
};

constexpr std::array kPresets{
    Preset{"llama-3.1-8b", 32, {32, 8, 128, 128, 4096}},
    Preset{"qwen3-8b", 36, {32, 8, 128, 128, 4096}},
    Preset{"mistral-7b", 32, {32, 8, 128, 128, 4096}, 0, 4096},
    Preset{"gemma-2-9b", 42, {16, 8, 256, 256, 3584}, 50, 4096, true},
    Preset{"gpt-oss-20b", 24, {64, 8, 64, 64, 2880}, 0, 128, true, true, true},
    Preset{"deepseek-v2-lite", 27, {16, 16, 192, 128, 2048}},
    Preset{"tiny", 2, {4, 2, 16, 16, 32}},
};

/// A stream of numbers that any element of can be had on its own: a hash of (key, index).
class Stream {
 public:
  explicit Stream(std::uint64_t key) : key_(scatter(key)) {}
  Stream child(std::uint64_t name) const { return Stream(key_ + 0x632be59bd9b4e019ULL * (name + 1)); }

  std::uint64_t bits(std::uint64_t index) const { return scatter(key_ + index); }
  double uniform(std::uint64_t index) const { return static_cast<double>(bits(index) >> 11) * 0x1p-53; }
  /// Mean 0, variance 1, nearly normal: the sum of four 16-bit uniform numbers.
  float normal(std::uint64_t index) const {
    const std::uint64_t b = bits(index);
    const auto sum =
        static_cast<std::int64_t>((b & 0xffff) + (b >> 16 & 0xffff) + (b >> 32 & 0xffff) + (b >> 48)) - 131070;
    return static_cast<float>(static_cast<double>(sum) * (1.7320508075688772 / 65535.0));
  }

 private:
  std::uint64_t key_;
};

enum StreamName : std::uint64_t {
  kDirections,
  kQueryNoise,
  kKeyNoise,
  kValueNoise,
  kTokens,
  kHeads,
  kWeights,
  kBias,
  kSinks,
  kResidual
};

/// Directions in head space, shared by the queries and keys of one KV head: what they attend by.
enum Direction : Index { kSinkDirection, kHeavyDirection, kFirstTopic };
constexpr Index kTopics = 12;
constexpr Index kRotations = 4;  ///< rotating planes that encode the position, as rotary embeddings do

/// Points on circles of growing period at every position, by repeated complex multiplication from a rational starting
/// angle.
Matrix rotation_table(Index tokens) {
  Matrix table(tokens, 2 * kRotations);
  for (Index r = 0; r < kRotations; ++r) {
    const double tangent = 0.25 / static_cast<double>(Index{1} << (2 * r));
    const double c = (1 - tangent * tangent) / (1 + tangent * tangent), s = 2 * tangent / (1 + tangent * tangent);
    double x = 1, y = 0;
    for (Index t = 0; t < tokens; ++t) {
      table(t, 2 * r) = x;
      table(t, 2 * r + 1) = y;
      const double next = x * c - y * s;
      y = x * s + y * c;
      x = next;
    }
  }
  return table;
}

/// The topic that a stretch of 48 tokens is about.
Index topic_of(const Stream& tokens, Index position) {
  return static_cast<Index>(tokens.bits(static_cast<std::uint64_t>(position / 48)) % kTopics);
}

bool is_heavy(const Stream& tokens, Index position) {
  return tokens.child(1).bits(static_cast<std::uint64_t>(position)) % 64 == 0;
}

class LayerMaker {
 public:
  LayerMaker(const SynthOptions& options, const std::vector<Index>& positions, const Matrix& rotations)
      : options_(options), positions_(positions), rotations_(rotations), tokens_(Stream(options.seed).child(kTokens)) {}

  LayerTensors make(Index index) const {
    const LayerGeometry& g = options_.geometry;
    const Stream stream = Stream(options_.seed).child(100 + static_cast<std::uint64_t>(index));
    const Index tokens = options_.context_length + options_.decoded, queries = static_cast<Index>(positions_.size());
    LayerTensors layer;
    layer.layer = index;
    layer.geometry = g;
    layer.attention.scale = 1 / std::sqrt(static_cast<double>(g.head_size));  // sqrt is exactly rounded everywhere
    layer.attention.softcap = options_.softcap;
    layer.attention.sliding_window = options_.alternating && index % 2 == 1 ? 0 : options_.sliding_window;
    layer.context_length = options_.context_length;
    layer.tokens = tokens;
    layer.query_positions = positions_;
    layer.q = Tensor(ElementType::float32, {g.query_heads, queries, g.head_size});
    layer.k = Tensor(ElementType::float32, {g.kv_heads, tokens, g.head_size});
    layer.v = Tensor(ElementType::float32, {g.kv_heads, tokens, g.value_size});
    layer.w_o = Tensor(ElementType::float32, {g.query_heads * g.value_size, g.model_size});
    const int threads = thread_count(0);
    parallel_for(threads, g.kv_heads, [&](Index head) { fill_keys_and_values(layer, stream, head); });
    parallel_for(threads, g.query_heads, [&](Index head) { fill_queries(layer, stream, head); });
    parallel_for(threads, g.query_heads, [&](Index head) { fill_projection(layer, stream, head); });
    fill_extras(layer, stream);
    if (!options_.adversarial.empty()) make_adversarial(layer, options_.adversarial);
    return layer;
  }

 private:
  /// A unit-variance direction [d] of one KV head.
  float direction(const Stream& stream, Index kv_head, Index which, Index c) const {
    return stream.child(kDirections)
        .child(static_cast<std::uint64_t>(kv_head))
        .normal(static_cast<std::uint64_t>(which * options_.geometry.head_size + c));
  }

  std::vector<float> directions(const Stream& stream, Index kv_head) const {
    const Index size = options_.geometry.head_size;
    std::vector<float> all(static_cast<std::size_t>((kFirstTopic + kTopics) * size));
    for (Index which = 0; which < kFirstTopic + kTopics; ++which) {
      for (Index c = 0; c < size; ++c) all[which * size + c] = direction(stream, kv_head, which, c);
    }
    return all;
  }

  /// Adds the position's points on the rotating circles to the last planes of a row.
  void add_position(float* row, Index position, float strength) const {
    const Index planes = std::min(kRotations, options_.geometry.head_size / 4);
    float* last = row + options_.geometry.head_size - 2 * planes;
    for (Index c = 0; c < 2 * planes; ++c) last[c] += strength * static_cast<float>(rotations_(position, c));
  }

  static void add(float* row, const std::vector<float>& all, Index which, float strength, Index size) {
    for (Index c = 0; c < size; ++c) row[c] += strength * all[which * size + c];
  }

  void fill_keys_and_values(LayerTensors& layer, const Stream& stream, Index head) const {
    const LayerGeometry& g = layer.geometry;
    const std::vector<float> all = directions(stream, head);
    const Stream keys = stream.child(kKeyNoise).child(static_cast<std::uint64_t>(head));
    const Stream values = stream.child(kValueNoise).child(static_cast<std::uint64_t>(head));
    for (Index i = 0; i < layer.tokens; ++i) {
      float* k = layer.k.data<float>() + (head * layer.tokens + i) * g.head_size;
      for (Index c = 0; c < g.head_size; ++c)
        k[c] = 0.6F * keys.normal(static_cast<std::uint64_t>(i * g.head_size + c));
      const bool sink = i < 4, heavy = is_heavy(tokens_, i);
      if (sink) add(k, all, kSinkDirection, i == 0 ? 1.0F : 0.6F, g.head_size);
      if (heavy) add(k, all, kHeavyDirection, 0.9F, g.head_size);
      add(k, all, kFirstTopic + topic_of(tokens_, i), 0.6F, g.head_size);
      add_position(k, i, 2.0F);
      // Sinks carry little, heavy hitters much, the others unevenly.
      const float uneven = static_cast<float>(0.4 / (0.25 + values.child(1).uniform(static_cast<std::uint64_t>(i))));
      const float size = sink ? 0.1F : heavy ? 1.5F : uneven;
      float* v = layer.v.data<float>() + (head * layer.tokens + i) * g.value_size;
      for (Index c = 0; c < g.value_size; ++c)
        v[c] = size * values.normal(static_cast<std::uint64_t>(i * g.value_size + c));
    }
  }

  /// Heads differ in what they attend by: sinks, heavy hitters, the topic at hand, or the neighbourhood.
  void fill_queries(LayerTensors& layer, const Stream& stream, Index head) const {
    const LayerGeometry& g = layer.geometry;
    const std::vector<float> all = directions(stream, head / g.group());
    const Stream kind = stream.child(kHeads).child(static_cast<std::uint64_t>(head));
    // A direction of d unit-variance components against itself gives a logit of about its strengths' product times
    // sqrt(d).
    const float unit = static_cast<float>(1 / std::sqrt(std::sqrt(static_cast<double>(g.head_size))));
    const float sink = unit * static_cast<float>(0.4 + 1.4 * kind.uniform(0)),
                heavy = unit * static_cast<float>(2.4 * kind.uniform(1));
    const float topic = unit * static_cast<float>(2.8 * kind.uniform(2)),
                local = unit * static_cast<float>(6.0 * kind.uniform(3));
    const Stream noise = stream.child(kQueryNoise).child(static_cast<std::uint64_t>(head));
    for (Index row = 0; row < layer.queries(); ++row) {
      const Index t = positions_[row];
      float* q = layer.q.data<float>() + (head * layer.queries() + row) * g.head_size;
      for (Index c = 0; c < g.head_size; ++c)
        q[c] = 0.8F * noise.normal(static_cast<std::uint64_t>(t * g.head_size + c));
      add(q, all, kSinkDirection, sink, g.head_size);
      add(q, all, kHeavyDirection, heavy, g.head_size);
      add(q, all, kFirstTopic + topic_of(tokens_, t), topic, g.head_size);
      add_position(q, t, local);
    }
  }

  void fill_projection(LayerTensors& layer, const Stream& stream, Index head) const {
    const LayerGeometry& g = layer.geometry;
    const Stream weights = stream.child(kWeights).child(static_cast<std::uint64_t>(head));
    const double gain = 0.4 / (0.2 + weights.child(1).uniform(0));
    const float size = static_cast<float>(gain / std::sqrt(static_cast<double>(g.query_heads * g.value_size)));
    float* w = layer.w_o.data<float>() + head * g.value_size * g.model_size;
    for (Index i = 0; i < g.value_size * g.model_size; ++i) w[i] = size * weights.normal(static_cast<std::uint64_t>(i));
  }

  void fill_extras(LayerTensors& layer, const Stream& stream) const {
    for (Index c = 0; options_.bias && c < layer.geometry.model_size; ++c) {
      layer.bias.push_back(0.05 * static_cast<double>(stream.child(kBias).normal(static_cast<std::uint64_t>(c))));
    }
    for (Index h = 0; options_.sinks && h < layer.geometry.query_heads; ++h) {
      layer.attention.sinks.push_back(2.0 +
                                      static_cast<double>(stream.child(kSinks).normal(static_cast<std::uint64_t>(h))));
    }
    fill_residual_norms(layer, stream.child(kResidual));
  }

  /// The residual stream grows with depth and varies from token to token; the first tokens, which are attention sinks,
  /// stand far above the others, as in real models.
  void fill_residual_norms(LayerTensors& layer, const Stream& stream) const {
    const double size =
        std::sqrt(static_cast<double>(layer.geometry.model_size)) * (1.0 + 0.5 * static_cast<double>(layer.layer));
    for (const Index position : positions_) {
      const double uneven = 0.75 + 0.5 * stream.uniform(static_cast<std::uint64_t>(position));
      layer.residual_norms.push_back(size * (position < 4 ? 20.0 : uneven));
    }
  }

  const SynthOptions& options_;
  const std::vector<Index>& positions_;
  const Matrix& rotations_;
  Stream tokens_;
};

void check_options(const SynthOptions& o) {
  const LayerGeometry& g = o.geometry;
  const auto at_least = [](const char* what, Index value, Index minimum) {
    if (value < minimum)
      throw UsageError(fmt::format("synth: {}: expected {} or more, found {}", what, minimum, value));
  };
  at_least("layers", o.layers, 1);
  at_least("query heads", g.query_heads, 1);
  at_least("KV heads", g.kv_heads, 1);
  at_least("head size", g.head_size, 1);
  at_least("value size", g.value_size, 1);
  at_least("model size", g.model_size, 1);
  at_least("tokens", o.context_length, 1);
  at_least("decoded tokens", o.decoded, 0);
  at_least("recent queries", o.recent_queries, 0);
  at_least("sliding window", o.sliding_window, 0);
  if (g.query_heads % g.kv_heads != 0) {
    throw UsageError(fmt::format("synth: {} query heads are not a multiple of {} KV heads", g.query_heads, g.kv_heads));
  }
  std::vector<std::string> kinds;
  for (const AdversarialKind& kind : adversarial_kinds()) kinds.emplace_back(kind.name);
  if (!o.adversarial.empty() && std::find(kinds.begin(), kinds.end(), o.adversarial) == kinds.end()) {
    throw UsageError(fmt::format("synth: unknown adversarial kind '{}'; did you mean '{}'? (kinds: {})", o.adversarial,
                                 nearest(o.adversarial, kinds), join(kinds, ", ")));
  }
  if (!(o.softcap >= 0))
    throw UsageError(fmt::format("synth: softcap: expected 0 (none) or more, found {}", o.softcap));
}

Index first_query(const SynthOptions& options) {
  return options.recent_queries == 0 ? 0 : std::max<Index>(0, options.context_length - options.recent_queries);
}

}  // namespace

std::vector<std::string> synth_presets() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

SynthOptions synth_preset(const std::string& name) {
  for (const Preset& preset : kPresets) {
    if (preset.name != name) continue;
    SynthOptions options;
    options.layers = preset.layers;
    options.geometry = preset.geometry;
    options.softcap = preset.softcap;
    options.sliding_window = preset.sliding_window;
    options.alternating = preset.alternating;
    options.sinks = preset.sinks;
    options.bias = preset.bias;
    options.model = fmt::format("synthetic, shape of {}", preset.name);
    return options;
  }
  throw UsageError(fmt::format("unknown preset '{}'; did you mean '{}'? (presets: {})", name,
                               nearest(name, synth_presets()), join(synth_presets(), ", ")));
}

double synth_bytes(const SynthOptions& options) {
  const LayerGeometry& g = options.geometry;
  const Index tokens = options.context_length + options.decoded;
  const auto count = [](Index a, Index b, Index c) {
    return static_cast<double>(a) * static_cast<double>(b) * static_cast<double>(c);
  };
  const double elements = count(g.query_heads, tokens - first_query(options), g.head_size) +
                          count(g.kv_heads, tokens, g.head_size + g.value_size) +
                          count(g.query_heads, g.value_size, g.model_size);
  return elements * static_cast<double>(options.layers * size_of(options.type));
}

void synthesize_dump(const std::filesystem::path& path, const SynthOptions& options, bool replace,
                     const Progress& progress) {
  check_options(options);
  DumpInfo info;
  info.path = path;
  info.model = options.model;
  info.source = fmt::format("laprox synth, seed {}", options.seed);
  if (!options.adversarial.empty()) info.source += ", adversarial " + options.adversarial;
  info.context_length = options.context_length;
  info.tokens = options.context_length + options.decoded;
  for (Index position = first_query(options); position < info.tokens; ++position)
    info.query_positions.push_back(position);
  DumpWriter writer(info, replace, options.gzip);
  std::error_code ignored;
  const auto space = std::filesystem::space(std::filesystem::absolute(path).parent_path(), ignored);
  if (!ignored && static_cast<double>(space.available) < synth_bytes(options)) {
    throw FileError(fmt::format("{}: cannot be written: the dump takes {:.3g} MB, the disk has {:.3g} MB left",
                                path.string(), synth_bytes(options) / 1e6, static_cast<double>(space.available) / 1e6));
  }
  const Matrix rotations = rotation_table(info.tokens);
  const LayerMaker maker(options, info.query_positions, rotations);
  for (Index layer = 0; layer < options.layers; ++layer) {
    writer.write_layer(maker.make(layer), options.type);
    if (progress) progress(layer, options.layers, "write");
  }
  writer.commit();
}

}  // namespace laprox
