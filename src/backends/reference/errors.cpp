#include "backends/reference/errors.h"

#include <cmath>

#include "backends/reference/attention.h"

namespace laprox::reference {

namespace {

/// Which keys of one KV head are in the cache: the first `count` context tokens of its ranking, and all decoded ones.
std::vector<bool> kept_keys(const LayerTensors& layer, const Ranking& ranking, Index count) {
  std::vector<bool> kept(static_cast<std::size_t>(layer.tokens), false);
  for (Index i = layer.context_length; i < layer.tokens; ++i) kept[i] = true;
  for (Index n = 0; n < count; ++n) kept[ranking[n]] = true;
  return kept;
}

/// Which keys of one KV head are in a cache that changes while decoding, when the query at `position` comes.
std::vector<bool> held_keys(const Lifetimes& gone, Index position) {
  std::vector<bool> held;
  for (const std::int32_t end : gone) held.push_back(position < end);
  return held;
}

}  // namespace

LayerReplay::LayerReplay(const LayerTensors& layer) : layer_(layer) {
  const std::vector<bool> all(static_cast<std::size_t>(layer.tokens), true);
  const std::vector each_query(static_cast<std::size_t>(layer.queries()), all);
  exact_heads_ = heads(Caches(static_cast<std::size_t>(layer.geometry.kv_heads), each_query));
  exact_.output = layer_output(exact_heads_);
  for (const Matrix& output : exact_heads_.outputs) exact_.head_norm.push_back(output.squaredNorm());
}

/// o_h = A_h V_g of every query head, with the attention over the kept keys of its KV head.
LayerReplay::Heads LayerReplay::heads(const Caches& kept) const {
  Heads heads;
  for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
    Matrix weights(layer_.queries(), layer_.tokens);
    for (Index t = 0; t < layer_.queries(); ++t) {
      const auto& of_head = kept[static_cast<std::size_t>(head / layer_.geometry.group())];
      const auto row = attention_row(layer_, head, t, of_head[t]);
      for (Index i = 0; i < layer_.tokens; ++i) weights(t, i) = row[i];
    }
    heads.outputs.push_back(weighted_values(head, weights));
    heads.weights.push_back(std::move(weights));
  }
  return heads;
}

Matrix LayerReplay::weighted_values(Index head, const Matrix& weights) const {
  const auto v = layer_.v.matrix<double>(head / layer_.geometry.group());
  Matrix output = Matrix::Zero(weights.rows(), v.cols());
  for (Index t = 0; t < weights.rows(); ++t) {
    for (Index i = 0; i < weights.cols(); ++i) {
      // An evicted key is never read: its value may be anything.
      if (weights(t, i) == 0) continue;
      for (Index c = 0; c < v.cols(); ++c) output(t, c) += weights(t, i) * v(i, c);
    }
  }
  return output;
}

/// Truncated mode: the exact weights with the evicted columns set to 0, not rescaled.
void LayerReplay::drop_evicted(Heads& exact, const Caches& kept) const {
  for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
    const auto& kept_of_head = kept[static_cast<std::size_t>(head / layer_.geometry.group())];
    Matrix& weights = exact.weights[head];
    for (Index t = 0; t < layer_.queries(); ++t) {
      for (Index i = 0; i < layer_.tokens; ++i) {
        if (!kept_of_head[t][i]) weights(t, i) = 0;
      }
    }
    exact.outputs[head] = weighted_values(head, weights);
  }
}

/// O = sum_h o_h W_O^h + b_o: [n, D].
Matrix LayerReplay::layer_output(const Heads& heads) const {
  Matrix output = Matrix::Zero(layer_.queries(), layer_.geometry.model_size);
  for (Index t = 0; t < layer_.queries(); ++t) {
    for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
      const std::vector<double> term = project(layer_, head, &heads.outputs[head](t, 0));
      for (Index c = 0; c < output.cols(); ++c) output(t, c) += term[c];
    }
    for (std::size_t c = 0; c < layer_.bias.size(); ++c) output(t, static_cast<Index>(c)) += layer_.bias[c];
  }
  return output;
}

LayerReplay::Caches LayerReplay::caches(const LayerKeep& keep, std::size_t budget) const {
  Caches kept(static_cast<std::size_t>(layer_.geometry.kv_heads));
  for (std::size_t head = 0; head < kept.size(); ++head) {
    for (const Index position : layer_.query_positions) {
      kept[head].push_back(keep.lifetimes.empty() ? kept_keys(layer_, keep.rankings[head], keep.counts[budget][head])
                                                  : held_keys(keep.lifetimes[head], position));
    }
  }
  return kept;
}

std::vector<OutputError> LayerReplay::output_errors(const LayerKeep& keep, SoftmaxMode mode) const {
  std::vector<OutputError> errors;
  for (std::size_t budget = 0; budget < keep.counts.size(); ++budget) {
    const Caches kept = caches(keep, budget);
    Heads kept_heads;
    if (mode == SoftmaxMode::renormalized) {
      kept_heads = heads(kept);
    } else {
      kept_heads = exact_heads_;
      drop_evicted(kept_heads, kept);
    }
    errors.push_back(compare(kept_heads, kept));
    if (mode == SoftmaxMode::truncated) errors.back().bound = bound(kept);
  }
  return errors;
}

OutputError LayerReplay::compare(const Heads& kept_heads, const Caches& kept) const {
  OutputError error;
  const Matrix kept_output = layer_output(kept_heads), delta = kept_output - exact_.output;
  for (Index t = 0; t < delta.rows(); ++t) {
    error.query_error.push_back(delta.row(t).squaredNorm());
    error.kept_square.push_back(kept_output.row(t).squaredNorm());
    error.kept_product.push_back(kept_output.row(t).dot(exact_.output.row(t)));
  }
  double evicted_mass = 0;
  for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
    const auto at = static_cast<std::size_t>(head);
    error.head_error.push_back((kept_heads.outputs[at] - exact_heads_.outputs[at]).squaredNorm());
    const auto& kept_of_head = kept[static_cast<std::size_t>(head / layer_.geometry.group())];
    for (Index i = 0; i < layer_.tokens; ++i) {
      for (std::size_t t = 0; t < kept_of_head.size(); ++t) {
        if (!kept_of_head[t][i]) {
          evicted_mass += exact_heads_.weights[at](static_cast<Index>(t), i);
        }
      }
    }
  }
  error.retained_mass = 1 - evicted_mass / static_cast<double>(layer_.geometry.query_heads * layer_.queries());
  return error;
}

/// sum over evicted (g, i) of sum_{h in g} ||A_h[:, i]|| ||v_i W_O^h||, a triangle inequality on the truncated product.
double LayerReplay::bound(const Caches& kept) const {
  double sum = 0;
  for (Index head = 0; head < layer_.geometry.query_heads; ++head) {
    const Index kv_head = head / layer_.geometry.group();
    const auto v = layer_.v.matrix<double>(kv_head);
    for (Index i = 0; i < layer_.context_length; ++i) {
      if (kept[kv_head][0][i]) continue;
      double square = 0;
      for (double x : project(layer_, head, v.row(i).data())) square += x * x;
      sum += exact_heads_.weights[head].col(i).norm() * std::sqrt(square);
    }
  }
  return sum;
}

}  // namespace laprox::reference
