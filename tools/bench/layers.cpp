#include "layers.h"

#include <unistd.h>

#include <cmath>
#include <map>
#include <random>
#include <tuple>

#include "laprox/dump_writer.h"

namespace laprox::bench {

namespace {

/// Uniform values of variance `deviation`^2: products cost the same whatever the distribution.
Tensor random_tensor(std::vector<Index> shape, float deviation, unsigned seed) {
  Tensor tensor(ElementType::float32, std::move(shape));
  std::minstd_rand generator(seed + 1);
  std::uniform_real_distribution<float> uniform(-deviation * std::sqrt(3.0F), deviation * std::sqrt(3.0F));
  float* values = tensor.data<float>();
  for (Index i = 0; i < tensor.size(); ++i) values[i] = uniform(generator);
  return tensor;
}

LayerTensors make_layer(Index context, Index decoded, Index queries) {
  const Index tokens = context + decoded;
  LayerTensors layer;
  layer.geometry = kLlama;
  layer.attention.scale = 1 / std::sqrt(128.0);
  layer.context_length = context;
  layer.tokens = tokens;
  for (Index position = tokens - queries; position < tokens; ++position) layer.query_positions.push_back(position);
  layer.q = random_tensor({kLlama.query_heads, queries, kLlama.head_size}, 1, 1);
  layer.k = random_tensor({kLlama.kv_heads, tokens, kLlama.head_size}, 1, 2);
  layer.v = random_tensor({kLlama.kv_heads, tokens, kLlama.value_size}, 1, 3);
  layer.w_o = random_tensor({kLlama.query_heads * kLlama.value_size, kLlama.model_size}, 0.02F, 4);
  return layer;
}

/// Files of this run; removed when it ends.
class TemporaryFolder {
 public:
  TemporaryFolder() : path_(std::filesystem::temp_directory_path() / ("laprox-bench-" + std::to_string(getpid()))) {
    std::filesystem::create_directory(path_);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace

const LayerTensors& random_layer(Index context, Index decoded, Index queries) {
  static std::map<std::tuple<Index, Index, Index>, LayerTensors> layers;
  const std::tuple key{context, decoded, queries};
  if (!layers.contains(key)) {
    layers.clear();  // one at a time: the large ones take gigabytes
    layers.emplace(key, make_layer(context, decoded, queries));
  }
  return layers.at(key);
}

const std::filesystem::path& random_dump(Index context, Index decoded, Index window) {
  static const TemporaryFolder folder;
  static std::map<std::tuple<Index, Index, Index>, std::filesystem::path> dumps;
  const auto [entry, is_new] = dumps.try_emplace({context, decoded, window});
  if (is_new) {
    entry->second = folder.path() / (std::to_string(context) + "-" + std::to_string(window) + ".h5");
    const LayerTensors& layer = random_layer(context, decoded, window + decoded);
    DumpInfo info;
    info.path = entry->second;
    info.context_length = context;
    info.query_positions = layer.query_positions;
    DumpWriter writer(info, true);
    writer.write_layer(layer, ElementType::float16);
    writer.commit();
  }
  return entry->second;
}

}  // namespace laprox::bench
