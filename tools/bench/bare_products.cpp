#include "bare_products.h"

#include <cblas.h>

#include <algorithm>
#include <vector>

namespace laprox::bench {

namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using View = Eigen::Map<const RowMajor>;

float* scratch(Index size) {
  static std::vector<float> memory;
  if (static_cast<Index>(memory.size()) < size) memory.resize(static_cast<std::size_t>(size));
  return memory.data();
}

}  // namespace

void product(Peer peer, Index m, Index n, Index k, const float* a, const float* b, bool transpose_b, float* c) {
  if (peer == Peer::openblas) {
    const auto size = [](Index i) { return static_cast<int>(i); };
    cblas_sgemm(CblasRowMajor, CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, size(m), size(n), size(k), 1, a,
                size(k), b, size(transpose_b ? k : n), 0, c, size(n));
    return;
  }
  Eigen::Map<RowMajor> out(c, m, n);
  if (transpose_b) {
    out.noalias() = View(a, m, k) * View(b, n, k).transpose();
  } else {
    out.noalias() = View(a, m, k) * View(b, k, n);
  }
}

void causal_logits(Peer peer, const LayerTensors& layer) {
  constexpr Index kBlock = 512;
  const LayerGeometry& g = layer.geometry;
  float* out = scratch(kBlock * layer.tokens);
  for (Index head = 0; head < g.query_heads; ++head) {
    const float* q = layer.q.matrix<float>(head).data();
    const float* k = layer.k.matrix<float>(head / g.group()).data();
    for (Index first = 0; first < layer.context_length; first += kBlock) {
      const Index rows = std::min(kBlock, layer.context_length - first);
      product(peer, rows, first + rows, g.head_size, q + first * g.head_size, k, true, out);
    }
  }
}

void window_logits(Peer peer, const LayerTensors& layer) {
  const LayerGeometry& g = layer.geometry;
  float* out = scratch(g.group() * layer.queries() * layer.tokens);
  for (Index kv_head = 0; kv_head < g.kv_heads; ++kv_head) {
    // The queries of a group lie in one piece, so that one product serves them all.
    const float* q = layer.q.matrix<float>(kv_head * g.group()).data();
    product(peer, g.group() * layer.queries(), layer.tokens, g.head_size, q, layer.k.matrix<float>(kv_head).data(),
            true, out);
  }
}

void value_gram(Peer peer, const LayerTensors& layer) {
  const LayerGeometry& g = layer.geometry;
  std::vector<float> gram(static_cast<std::size_t>(g.value_size * g.value_size));
  float* out = scratch(layer.tokens * g.value_size);
  for (Index head = 0; head < g.query_heads; ++head) {
    const float* w = layer.w_o.data<float>() + head * g.value_size * g.model_size;
    product(peer, g.value_size, g.value_size, g.model_size, w, w, true, gram.data());
    product(peer, layer.tokens, g.value_size, g.value_size, layer.v.matrix<float>(head / g.group()).data(), gram.data(),
            false, out);
  }
}

void removal(Peer peer, const LayerTensors& layer) {
  const LayerGeometry& g = layer.geometry;
  const Index vectors = g.group() * g.group() * layer.queries();
  std::vector<float> gram(static_cast<std::size_t>(g.value_size * g.value_size));
  const std::vector<float> moments(static_cast<std::size_t>(vectors * g.value_size), 1.0F);
  float* out = scratch(layer.tokens * std::max(g.value_size, vectors));
  window_logits(peer, layer);
  for (Index kv_head = 0; kv_head < g.kv_heads; ++kv_head) {
    const float* v = layer.v.matrix<float>(kv_head).data();
    const float* w = layer.w_o.data<float>() + kv_head * g.group() * g.value_size * g.model_size;
    for (Index a = 0; a < g.group(); ++a) {
      for (Index b = a; b < g.group(); ++b) {
        const Index block = g.value_size * g.model_size;
        product(peer, g.value_size, g.value_size, g.model_size, w + a * block, w + b * block, true, gram.data());
        product(peer, layer.tokens, g.value_size, g.value_size, v, gram.data(), false, out);
      }
    }
    product(peer, layer.tokens, vectors, g.value_size, v, moments.data(), true, out);
  }
}

void far_removal(Peer peer, const LayerTensors& layer) {
  causal_logits(peer, layer);
  // (o M) V^T has the shape of Q K^T.
  causal_logits(peer, layer);
}

void decoding_steps(const LayerTensors& layer, Index kept, int threads) {
  const LayerGeometry& g = layer.geometry;
#pragma omp parallel for num_threads(threads)
  for (Index kv_head = 0; kv_head < g.kv_heads; ++kv_head) {
    const View k(layer.k.matrix<float>(kv_head).data(), kept, g.head_size);
    const View v(layer.v.matrix<float>(kv_head).data(), kept, g.value_size);
    RowMajor q(g.group(), g.head_size), p(g.group(), kept), out(g.group(), g.value_size);
    for (Index step = 0; step < layer.queries(); ++step) {
      for (Index a = 0; a < g.group(); ++a) {
        q.row(a) = layer.q.matrix<float>(kv_head * g.group() + a).row(step);
      }
      p.noalias() = q * k.transpose();
      out.noalias() = p * v;
    }
  }
}

void exact_output(Peer peer, const LayerTensors& layer) {
  const LayerGeometry& g = layer.geometry;
  const Index rows = g.group() * layer.queries(), width = g.query_heads * g.value_size;
  float* logits = scratch(rows * layer.tokens);
  std::vector<float> heads(static_cast<std::size_t>(layer.queries() * width));
  std::vector<float> output(static_cast<std::size_t>(layer.queries() * g.model_size));
  for (Index kv_head = 0; kv_head < g.kv_heads; ++kv_head) {
    const float* q = layer.q.matrix<float>(kv_head * g.group()).data();
    product(peer, rows, layer.tokens, g.head_size, q, layer.k.matrix<float>(kv_head).data(), true, logits);
    product(peer, rows, g.value_size, layer.tokens, logits, layer.v.matrix<float>(kv_head).data(), false,
            heads.data() + kv_head * rows * g.value_size);
  }
  product(peer, layer.queries(), g.model_size, width, heads.data(), layer.w_o.data<float>(), false, output.data());
}

}  // namespace laprox::bench
