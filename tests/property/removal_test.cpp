// The energies of removal: against an entry really removed, against float64 where float32 would cancel, and what the
// policies that are made of them promise.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "laprox/error.h"
#include "replay/selection.h"
#include "support/layers.h"
#include "support/tolerances.h"

namespace laprox::testing {

namespace {

/// ||change of the layer's output||^2 at every query when KV head `kv_head` loses one entry, by brute force.
std::vector<double> energies_without(const LayerTensors& layer, Index kv_head, Index token) {
  std::vector<Ranking> rankings;
  LayerKeep keep{{}, {{}}};
  for (Index head = 0; head < layer.geometry.kv_heads; ++head) {
    Ranking& ranking = rankings.emplace_back();
    for (Index i = 0; i < layer.context_length; ++i) {
      if (i != token) ranking.push_back(static_cast<std::int32_t>(i));
    }
    ranking.push_back(static_cast<std::int32_t>(token));
    keep.counts[0].push_back(head == kv_head ? layer.context_length - 1 : layer.context_length);
  }
  keep.rankings = rankings;
  return make_reference_backend()->layer_errors(layer, {keep}, SoftmaxMode::renormalized).errors[0][0].query_error;
}

/// The largest relative difference of two matrices; what is nothing beside the largest element counts as nothing.
double relative_difference(const Matrix& found, const Matrix& expected) {
  const double nothing = 1e-12 * expected.maxCoeff();
  return ((found - expected).array().abs() / (expected.array() + nothing + 1e-300)).maxCoeff();
}

using Twist = void (*)(LayerTensors&);

/// All values nearly the same: what they share cancels in every difference.
void make_equal(LayerTensors& layer) {
  double* v = layer.v.data<double>();
  for (Index i = 0; i < layer.v.size(); ++i) v[i] = static_cast<float>(3 + 1e-3 * v[i]);
}

/// Two kinds of tokens with nearly the same value each, of which a query sees one kind nearly alone.
void make_clusters(LayerTensors& layer) {
  const Index size = layer.geometry.value_size, key_size = layer.geometry.head_size;
  double *v = layer.v.data<double>(), *k = layer.k.data<double>();
  for (Index i = 0; i < layer.v.size(); ++i) {
    const double kind = i / size % 2 == 0 ? -1.5 : 2.0, component = static_cast<double>(i % size % 3) - 1.2;
    v[i] = static_cast<float>(kind * component + 1e-2 * v[i]);
  }
  for (Index i = 0; i < layer.k.size(); ++i) {
    const double kind = i / key_size % 2 == 0 ? -8.0 : 8.0;
    k[i] = static_cast<float>(0.3 * k[i] + (i % key_size == 0 ? kind : 0.0));
  }
}

/// Sharp attention: one entry has nearly all of a query's weight.
void make_sharp(LayerTensors& layer) {
  double* q = layer.q.data<double>();
  for (Index i = 0; i < layer.q.size(); ++i) q[i] *= 4;
}

struct Pair {
  LayerTensors exact, single;
};
Pair both_types(const LayerTensors& layer) {
  return {with_queries(layer, 0, layer.context_length, ElementType::float64),
          with_queries(layer, 0, layer.context_length, ElementType::float32)};
}

}  // namespace

TEST_CASE("an entry's energy is the change of the output when it is really removed") {
  unsigned seed = 20;
  for (const LayerShape& shape : varied_shapes()) {
    if (shape.context < 2 || shape.context > 100) continue;
    CAPTURE(shape.context);
    const LayerTensors layer = with_queries(random_layer(shape, ++seed), 0, shape.context, ElementType::float64);
    const auto kernels = make_reference_backend()->scoring(layer);
    const Index window = 5;
    const Matrix sums = kernels->removal_energies(window, OverQueries::sum, true);
    const Matrix maxima = kernels->removal_energies(window, OverQueries::maximum, true);
    for (Index kv_head = 0; kv_head < layer.geometry.kv_heads; ++kv_head) {
      for (Index token = 0; token < shape.context; token += 3) {
        const std::vector<double> energies = energies_without(layer, kv_head, token);
        double sum = 0, largest = 0;
        for (auto energy = energies.end() - window; energy != energies.end(); ++energy) {
          sum += *energy;
          largest = std::max(largest, *energy);
        }
        CHECK(sums(kv_head, token) == doctest::Approx(sum).epsilon(1e-6));
        CHECK(maxima(kv_head, token) == doctest::Approx(largest).epsilon(1e-6));
      }
    }
  }
}

TEST_CASE("with one query head per KV head, distant energies are those of removal too") {
  const LayerTensors layer =
      with_queries(random_layer({.geometry = {3, 3, 8, 8, 16}, .context = 30}, 3), 0, 30, ElementType::float64);
  const auto kernels = make_reference_backend()->scoring(layer);
  const Matrix far = kernels->far_energies(7);
  for (Index token : {0, 4, 22, 23, 29}) {
    const std::vector<double> energies = energies_without(layer, 1, token);
    double sum = 0;
    for (Index t = token + 7; t < 30; ++t) sum += energies[static_cast<std::size_t>(t)];
    CHECK(far(1, token) == doctest::Approx(sum).epsilon(1e-6));
  }
}

TEST_CASE("distant energies of the last queries are those of a layer that stores no others") {
  const auto both = backends();
  for (const Index queries : {1, 17, 40, 90}) {
    const LayerTensors whole = random_layer(
        {.geometry = {4, 2, 16, 8, 24}, .context = 90, .attention = {.scale = 0.25, .sliding_window = 70}}, 9);
    const LayerTensors all_exact = with_queries(whole, 0, 90, ElementType::float64);
    const LayerTensors exact = with_queries(whole, 90 - queries, 90, ElementType::float64);
    const LayerTensors single = with_queries(whole, 90 - queries, 90, ElementType::float32);
    const LayerTensors all = with_queries(whole, 0, 90, ElementType::float32);
    CAPTURE(queries);
    const Matrix expected = both[0]->scoring(all_exact)->far_energies(7, queries);
    CHECK(both[0]->scoring(exact)->far_energies(7, queries) == expected);
    CHECK(relative_difference(both[1]->scoring(single)->far_energies(7, queries), expected) <= 1e-4);
    CHECK(relative_difference(both[1]->scoring(all)->far_energies(7, queries), expected) <= 1e-4);
  }
}

TEST_CASE("float32 keeps its digits where values are nearly equal to the output") {
  const auto both = backends();
  unsigned seed = 50;
  for (const LayerShape& shape : varied_shapes()) {
    for (Twist twist : {Twist{[](LayerTensors&) {}}, Twist{make_equal}, Twist{make_clusters}, Twist{make_sharp}}) {
      LayerTensors layer = random_layer(shape, ++seed);
      twist(layer);
      CAPTURE(seed);
      const auto [exact, single] = both_types(layer);
      const auto expected = both[0]->scoring(exact), found = both[1]->scoring(single);
      // Logits of some hundreds in float32 are what is left: see kScore, and an energy has the square's twice of it.
      // On the GPU they are products of two tf32 numbers each, 22 bits instead of 24: four times the error.
      const double tolerance = both[1]->name() == "cuda" ? 4e-4 : 1e-4;
      for (bool joint : {true, false}) {
        for (OverQueries over : {OverQueries::sum, OverQueries::maximum}) {
          CHECK(relative_difference(found->removal_energies(9, over, joint),
                                    expected->removal_energies(9, over, joint)) <= tolerance);
        }
      }
      CHECK(relative_difference(found->far_energies(4), expected->far_energies(4)) <= tolerance);
    }
  }
}

TEST_CASE(
    "energies do not depend on the number of threads, nor column sums on whether distant energies came with them") {
  const LayerTensors layer = random_layer(
      {.geometry = {6, 2, 16, 24, 40}, .context = 1300, .attention = {.scale = 0.25, .sliding_window = 1100}}, 8);
  const LayerTensors single = with_queries(layer, 0, 1300, ElementType::float32);
  const auto one = make_cpu_backend(1), three = make_cpu_backend(3);
  const auto a = one->scoring(single), b = three->scoring(single);
  b->expect_far_energies(10);
  CHECK(a->removal_energies(32, OverQueries::sum, true) == b->removal_energies(32, OverQueries::sum, true));
  CHECK(a->column_sums() == b->column_sums());
  CHECK(a->far_energies(10) == b->far_energies(10));
}

TEST_CASE("pinned sinks lend their score to no neighbour") {
  std::vector<LayerTensors> layers;
  layers.push_back(with_queries(random_layer({.context = 40}, 12), 0, 40, ElementType::float64));
  const auto backend = make_reference_backend();
  for (const char* text : {"laprox-r:window=6,sinks=3,kernel=5", "laprox:window=6,sinks=3,kernel=5"}) {
    CAPTURE(text);
    const Policy policy = parse_policy(text);
    const Matrix scores = policy.scorer->score(LayerView(layers[0]), *backend->scoring(layers[0]));
    const Policy unpooled = parse_policy(std::string(text) + ",pool=none");
    const Matrix raw = unpooled.scorer->score(LayerView(layers[0]), *backend->scoring(layers[0]));
    // The first candidate's neighbours are the two behind it; the last one's the two before it.
    const bool takes_maximum = policy.scorer_name == "laprox-r";
    for (Index head = 0; takes_maximum && head < scores.rows(); ++head) {
      CHECK(scores(head, 3) == raw.row(head).segment(3, 3).maxCoeff());
      CHECK(scores(head, 33) == raw.row(head).segment(31, 3).maxCoeff());
    }
    const Kept kept = keep(policy, layers, {9, 12}, *backend);
    for (std::size_t head = 0; head < 2; ++head) {
      for (std::size_t budget = 0; budget < 2; ++budget) {
        const std::vector<int> tokens = kept.tokens(budget, 0, head);
        for (int pinned : {0, 1, 2, 34, 35, 36, 37, 38, 39}) {
          CHECK(std::binary_search(tokens.begin(), tokens.end(), pinned));
        }
      }
    }
  }
}

TEST_CASE("how many last tokens are pinned is an option of its own") {
  std::vector<LayerTensors> layers;
  layers.push_back(with_queries(random_layer({.context = 40}, 12), 0, 40, ElementType::float64));
  CHECK(parse_policy("laprox-r:window=6").scorer->traits().pins == Pins{.first = 4, .last = 6});
  CHECK(parse_policy("laprox-r:window=6,pinned=2,sinks=0").scorer->traits().pins == Pins{.first = 0, .last = 2});
  const Kept kept =
      keep(parse_policy("laprox-r+head:window=6,pinned=2,sinks=0,kernel=3"), layers, {8}, *make_reference_backend());
  CHECK(kept.tokens(0, 0, 0).size() == 8);
}

TEST_CASE("a layer's residual norm divides its scores, whatever the scorer") {
  std::vector<LayerTensors> layers;
  for (unsigned seed : {1U, 2U}) {
    layers.push_back(with_queries(random_layer({.context = 60}, seed), 0, 60, ElementType::float64));
  }
  const auto backend = make_reference_backend();
  for (const char* scorer :
       {"laprox-r:window=8,", "snapkv+global:window=8,", "knorm+global:", "h2o+global:recent=4,"}) {
    CAPTURE(scorer);
    const Policy policy = parse_policy(std::string(scorer) + "normalize=residual");
    // A stream a million times larger leaves the layer nothing but what is pinned.
    layers[0].residual_norms.assign(60, 1);
    layers[1].residual_norms.assign(60, 1e6);
    const Kept kept = keep(policy, layers, {20}, *backend);
    const Index pinned = policy.scorer->traits().pins.count(60);
    const bool negative = policy.scorer_name == "knorm";
    CHECK(kept.counts[0][negative ? 0 : 1] == std::vector<Index>(2, pinned));
    // Equal streams change nothing.
    layers[0].residual_norms.assign(60, 7);
    layers[1].residual_norms.assign(60, 7);
    const Kept even = keep(policy, layers, {20}, *backend);
    CHECK(even.counts == keep(parse_policy(std::string(scorer) + "normalize=false"), layers, {20}, *backend).counts);
  }
}

}  // namespace laprox::testing
