#include <cmath>

#include "backends/cpu/quadratic_form.h"
#include "backends/cpu/scoring.h"
#include "base/parallel.h"

namespace laprox::cpu {

namespace {

constexpr Index kTokenBlock = 240;

/// W_O^h [d_v, D].
auto output_block(const LayerTensors& layer, Index head) {
  const Index rows = layer.geometry.value_size;
  return layer.w_o.matrix<float>().middleRows(head * rows, rows);
}

/// The form of W^a (W^b)^T at every context token's value: <v_i W^a, v_i W^b>.
void value_form(const LayerTensors& layer, Index a, Index b, double* out) {
  const Index kv_head = a / layer.geometry.group();
  const float* values = layer.v.data<float>() + kv_head * layer.tokens * layer.geometry.value_size;
  QuadraticForm(gram(layer, a, b)).evaluate(values, layer.context_length, out);
}

}  // namespace

Matrix value_norms(const LayerTensors& layer, int threads) {
  Matrix norms(layer.geometry.query_heads, layer.context_length);
  parallel_for(threads, layer.geometry.query_heads, [&](Index head) {
    value_form(layer, head, head, &norms(head, 0));
    norms.row(head) = norms.row(head).cwiseMax(0.0).cwiseSqrt().eval();
  });
  return norms;
}

Matrix value_l1_norms(const LayerTensors& layer, int threads) {
  const LayerGeometry& g = layer.geometry;
  Matrix norms(g.query_heads, layer.context_length);
  parallel_for(threads, g.query_heads, [&](Index head) {
    Panels block(g.value_size, g.model_size);
    for (Index k = 0; k < g.value_size; ++k) block.set_row(k, output_block(layer, head).row(k).data());
    const float* values = layer.v.data<float>() + head / g.group() * layer.tokens * g.value_size;
    Buffer<float> products(kTokenBlock * kPanel);
    for (Index first = 0; first < layer.context_length; first += kTokenBlock) {
      const Index rows = std::min(kTokenBlock, layer.context_length - first);
      norms.row(head).segment(first, rows).setZero();
      for (Index p = 0; p < block.count(); ++p) {  // padding columns are zero, and add nothing
        multiply(rows, g.value_size, {values + first * g.value_size, g.value_size, 1}, block, p, p + 1, products.data(),
                 kPanel);
        for (Index row = 0; row < rows; ++row) {
          Lanes sums{};
          for (Index j = 0; j < kPanel; j += kLanes) {
            const Lanes x = load(products.data() + row * kPanel + j);
            sums += max(x, -x);
          }
          norms(head, first + row) += sum(sums);
        }
      }
    }
  });
  return norms;
}

Matrix value_products(const LayerTensors& layer, int threads) {
  const Index group = layer.geometry.group();
  Matrix products(layer.geometry.kv_heads * group * group, layer.context_length);
  parallel_for(threads, layer.geometry.query_heads, [&](Index a) {
    const Index kv_head = a / group, row = a * group;
    for (Index b = a % group; b < group; ++b) {
      value_form(layer, a, kv_head * group + b, &products(row + b, 0));
    }
  });
  // <v W^a, v W^b> = <v W^b, v W^a>: the lower triangle is the upper one.
  for (Index a = 0; a < layer.geometry.query_heads; ++a) {
    for (Index b = 0; b < a % group; ++b) {
      products.row(a * group + b) = products.row((a / group * group + b) * group + a % group);
    }
  }
  return products;
}

}  // namespace laprox::cpu
