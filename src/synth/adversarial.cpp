#include "synth/adversarial.h"

#include <algorithm>
#include <cmath>

#include "laprox/error.h"
#include "laprox/synth.h"

namespace laprox {

namespace {

float* row_of(Tensor& tensor, Index head, Index row) {
  const Index rows = tensor.shape()[1], columns = tensor.shape()[2];
  return tensor.data<float>() + (head * rows + row) * columns;
}

/// Moves all logits of a query head by about +2.5e5 or -2.5e5. The factors are powers of two, which every element type
/// holds exactly, so that what tells keys apart is still there, far below the leading digits.
void shift_logits(LayerTensors& layer, bool all_negative) {
  constexpr float kKey = 1024;
  const double wanted = 0x1p18 / layer.attention.scale / kKey;
  const auto query = static_cast<float>(std::ldexp(1.0, static_cast<int>(std::lround(std::log2(wanted)))));
  for (Index head = 0; head < layer.geometry.kv_heads; ++head) {
    for (Index i = 0; i < layer.tokens; ++i) row_of(layer.k, head, i)[0] = kKey;
  }
  for (Index head = 0; head < layer.geometry.query_heads; ++head) {
    const float sign = all_negative || head % 2 == 1 ? -1.0F : 1.0F;
    for (Index row = 0; row < layer.queries(); ++row) row_of(layer.q, head, row)[0] = sign * query;
  }
}

/// One key of every KV head, a third into the context, is a thousand times the others.
void add_giant_key(LayerTensors& layer) {
  for (Index head = 0; head < layer.geometry.kv_heads; ++head) {
    float* key = row_of(layer.k, head, layer.context_length / 3);
    for (Index c = 0; c < layer.geometry.head_size; ++c) key[c] *= 1024;
  }
}

/// Every second token repeats the key of the one before; its value is the same, or the opposite and large.
void pair_tokens(LayerTensors& layer, bool cancelling) {
  for (Index head = 0; head < layer.geometry.kv_heads; ++head) {
    for (Index i = 0; i + 1 < layer.tokens; i += 2) {
      std::copy_n(row_of(layer.k, head, i), layer.geometry.head_size, row_of(layer.k, head, i + 1));
      float *first = row_of(layer.v, head, i), *second = row_of(layer.v, head, i + 1);
      for (Index c = 0; c < layer.geometry.value_size; ++c) {
        const float large = 256 * first[c];
        second[c] = cancelling ? second[c] - large : first[c];
        if (cancelling) first[c] = large;
      }
    }
  }
}

}  // namespace

const std::vector<AdversarialKind>& adversarial_kinds() {
  static const std::vector<AdversarialKind> kinds{
      {"huge-logits", "logits near +2.5e5 in even query heads and near -2.5e5 in odd ones"},
      {"negative-rows", "all logits near -2.5e5: a finite mask of -5e4 is above them"},
      {"giant-key", "one key of every KV head is a thousand times the others"},
      {"equal-tokens", "every second token repeats the one before: scores tie"},
      {"cancelling-values", "tokens in pairs with equal keys, and large values that cancel"},
  };
  return kinds;
}

void make_adversarial(LayerTensors& layer, const std::string& kind) {
  if (kind == "huge-logits") return shift_logits(layer, false);
  if (kind == "negative-rows") return shift_logits(layer, true);
  if (kind == "giant-key") return add_giant_key(layer);
  if (kind == "equal-tokens") return pair_tokens(layer, false);
  if (kind == "cancelling-values") return pair_tokens(layer, true);
  throw Bug("unknown adversarial kind " + kind);
}

}  // namespace laprox
