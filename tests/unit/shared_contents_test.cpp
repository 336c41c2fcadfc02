#include <doctest/doctest.h>

#include "laprox/array_source.h"
#include "laprox/error.h"
#include "support/layers.h"

namespace laprox {

namespace {

/// Two layers from memory, of which the second reads the first one's cache.
ArraySource source_of(const std::vector<LayerTensors>& layers) {
  DumpInfo info;
  info.path = "arrays";
  info.context_length = layers[0].context_length, info.tokens = layers[0].tokens;
  info.query_positions = layers[0].query_positions;
  for (const LayerTensors& layer : layers) {
    LayerSummary summary;
    summary.geometry = layer.geometry, summary.attention = layer.attention;
    summary.q_type = summary.k_type = summary.v_type = summary.w_o_type = ElementType::float64;
    info.layers.push_back(summary);
  }
  info.layers[1].kv_source = 0;
  return {info, [&layers](Index layer, LayerArray array, DumpInfo::Rows) -> ArrayView {
            const LayerTensors& from = layers[static_cast<std::size_t>(layer)];
            const Tensor& tensor = array == LayerArray::q   ? from.q
                                   : array == LayerArray::k ? from.k
                                   : array == LayerArray::v ? from.v
                                                            : from.w_o;
            return {tensor.type(), tensor.shape(), tensor.raw(), nullptr};
          }};
}

}  // namespace

TEST_CASE("layers from memory that read one cache have the same keys and values") {
  std::vector<LayerTensors> layers;
  for (int n = 0; n < 2; ++n) layers.push_back(testing::random_layer({.residual = false}, 5));
  const DumpInfo::Rows all{0, layers[0].queries()};
  const auto read_both = [&] {
    const ArraySource source = source_of(layers);
    for (Index layer = 0; layer < 2; ++layer) source.read_layer(layer, all, ElementType::float32);
    source.read_layer(1, all, ElementType::float64);  // its source was not read so
  };
  read_both();
  layers[1].v.data<double>()[7] += 1;
  CHECK_THROWS_WITH_AS(read_both(),
                       "arrays: layer 1, v: expected the v of layer 0, whose cache this layer reads (kv_source), found "
                       "other values; store those again, or leave kv_source out",
                       DumpError);
}

}  // namespace laprox
