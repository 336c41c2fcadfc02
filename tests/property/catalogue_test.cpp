// What single policies of the catalogue promise, over random layers: identities between them, and the cases in which a
// larger budget deliberately does not keep all that a smaller one keeps.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "replay/selection.h"
#include "support/layers.h"
#include "support/tolerances.h"

namespace laprox::testing {

namespace {

/// Layers of one shape that hold their prompt queries, in float64.
std::vector<LayerTensors> prompts(const LayerShape& shape, std::initializer_list<unsigned> seeds) {
  std::vector<LayerTensors> layers;
  for (unsigned seed : seeds) {
    const LayerTensors layer = random_layer(shape, seed);
    layers.push_back(with_queries(layer, 0, layer.context_length, ElementType::float64));
    layers.back().layer = static_cast<Index>(layers.size()) - 1;
  }
  return layers;
}

LayerShape shape_of(Index query_heads, Index kv_heads, Index context) {
  LayerShape shape;
  shape.geometry = {query_heads, kv_heads, 8, 8, 16};
  shape.context = context;
  shape.spread = 2;
  return shape;
}

Kept keep_on_reference(const std::string& policy, const std::vector<LayerTensors>& layers,
                       const std::vector<Index>& budgets) {
  return keep(parse_policy(policy), layers, budgets, *make_reference_backend());
}

std::vector<Index> budgets_from(Index first, Index last) {
  std::vector<Index> budgets(static_cast<std::size_t>(last - first + 1));
  std::iota(budgets.begin(), budgets.end(), first);
  return budgets;
}

/// The same for oracles, whose queries are the judging ones.
Kept keep_judged(const std::string& policy, const LayerTensors& judged, const std::vector<Index>& budgets) {
  const Policy parsed = parse_policy(policy);
  std::vector<Budget> requests;
  for (Index budget : budgets) requests.emplace_back(budget, judged.geometry.kv_heads);
  const auto backend = make_reference_backend();
  Selector selector(parsed, requests, 1);
  selector.add_layer(LayerView::of_judged(judged), *backend->scoring(judged));
  return {selector.finish()};
}

/// Budgets at which some head lost a token that it kept at the budget before.
Index steps_back(const Kept& kept, const std::vector<LayerTensors>& layers) {
  Index steps = 0;
  for (std::size_t b = 1; b < kept.counts.size(); ++b) {
    bool lost = false;
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      for (std::size_t head = 0; head < kept.counts[b][layer].size(); ++head) {
        const auto now = kept.tokens(b, layer, head), before = kept.tokens(b - 1, layer, head);
        lost = lost || !std::includes(now.begin(), now.end(), before.begin(), before.end());
      }
    }
    steps += lost ? 1 : 0;
  }
  return steps;
}

bool keep_alike(const Kept& a, const Kept& b, const std::vector<LayerTensors>& layers) {
  for (std::size_t budget = 0; budget < a.counts.size(); ++budget) {
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      for (std::size_t head = 0; head < a.counts[budget][layer].size(); ++head) {
        if (a.tokens(budget, layer, head) != b.tokens(budget, layer, head)) return false;
      }
    }
  }
  return true;
}

double squared_error(const LayerTensors& judged, const Kept& kept, std::size_t budget) {
  const LayerKeep keep{kept.rankings(budget)[0], {kept.counts[budget][0]}};
  const OutputError error =
      make_reference_backend()->layer_errors(judged, {keep}, SoftmaxMode::renormalized).errors[0][0];
  return std::accumulate(error.query_error.begin(), error.query_error.end(), 0.0);
}

}  // namespace

TEST_CASE("policies whose order depends on the budget, or whose integers do, take steps back") {
  const auto layers = prompts(shape_of(6, 3, 60), {1, 2});
  const std::vector<Index> budgets = budgets_from(6, 60);
  const auto count = [&](const std::string& policy) {
    return steps_back(keep_on_reference(policy, layers, budgets), layers);
  };
  CHECK(count("keydiff:block=4") > 0);
  // Heads from flat to sharp, whose best tokens hold different shares of their scores.
  auto many_heads = prompts(shape_of(8, 8, 96), {1});
  double* k = many_heads[0].k.data<double>();
  for (Index i = 0; i < many_heads[0].k.size(); ++i) k[i] *= static_cast<double>(i * 8 / many_heads[0].k.size()) / 4;
  CHECK(steps_back(keep_on_reference("snapkv+ada:window=6,kernel=3,normalize=true,rounding=official", many_heads,
                                     budgets_from(6, 96)),
                   many_heads) > 0);
  // The same without what breaks it.
  CHECK(count("keydiff") == 0);
  CHECK(count("snapkv+pyramid:window=6,kernel=3") == 0);
}

TEST_CASE("a starved head of CriticalAdaKV can lose a token to a larger budget") {
  Index steps = 0;
  for (unsigned seed = 1; seed <= 12; ++seed) {
    LayerShape shape = shape_of(2, 2, 60);
    auto layers = prompts(shape, {seed});
    // One head attends evenly, so that the other one wins nearly everything.
    double* k = layers[0].k.data<double>();
    for (Index i = 0; i < 60 * 8; ++i) k[i] *= 0.02;
    steps += steps_back(keep_on_reference("criticaladakv:window=4,kernel=3,safeguard=0.5", layers, budgets_from(4, 60)),
                        layers);
  }
  CHECK(steps > 0);
}

TEST_CASE("CriticalKV with values of one norm is its base, SnapKV") {
  auto layers = prompts(shape_of(4, 2, 40), {3});
  double* v = layers[0].v.data<double>();
  for (Index i = 0; i < layers[0].v.size(); ++i) v[i] = 0.5;
  const std::vector<Index> budgets = budgets_from(5, 40);
  CHECK(keep_alike(keep_on_reference("criticalkv:window=5,kernel=3", layers, budgets),
                   keep_on_reference("snapkv:window=5,kernel=3", layers, budgets), layers));
}

TEST_CASE("CriticalAdaKV gives heads what AdaKV in kvpress gives them") {
  for (unsigned seed : {1U, 2U, 3U}) {
    const auto layers = prompts(shape_of(4, 4, 50), {seed});
    const std::vector<Index> budgets = budgets_from(8, 50);
    CHECK(keep_on_reference("criticaladakv:window=4,kernel=3", layers, budgets).counts ==
          keep_on_reference("snapkv+ada:window=4,kernel=3,variant=kvpress", layers, budgets).counts);
  }
}

TEST_CASE("normalising layers changes nothing where their scores have equal sums") {
  const auto layers = prompts(shape_of(4, 2, 40), {5, 5});
  const std::vector<Index> budgets = budgets_from(5, 40);
  CHECK(keep_alike(keep_on_reference("laprox:window=5,kernel=3", layers, budgets),
                   keep_on_reference("laprox+global:window=5,kernel=3,normalize=false", layers, budgets), layers));
}

TEST_CASE(
    "LaProx: the exact norm of a group's term is at most the sum of its heads' products, and equal without groups") {
  const auto backend = make_reference_backend();
  const auto scores = [&](const std::string& gqa, const LayerTensors& layer) {
    return parse_policy("laprox:window=5,pool=none,gqa=" + gqa)
        .scorer->score(LayerView(layer), *backend->scoring(layer));
  };
  const auto grouped = prompts(shape_of(6, 2, 30), {1}), single = prompts(shape_of(3, 3, 30), {1});
  CHECK(
      (scores("frobenius", grouped[0]).array() <= 3 * scores("mean-product", grouped[0]).array() * (1 + 1e-12)).all());
  CHECK((scores("frobenius", single[0]) - scores("mean-product", single[0])).norm() <=
        1e-10 * scores("mean-product", single[0]).norm());
}

TEST_CASE("DropKV without its epsilon is the squared error of dropping one entry") {
  LayerShape shape = shape_of(1, 1, 20);
  shape.geometry.model_size = 8;
  LayerTensors layer = with_queries(random_layer(shape, 9), 14, 20, ElementType::float64);
  double* w_o = layer.w_o.data<double>();
  for (Index row = 0; row < 8; ++row) {
    for (Index column = 0; column < 8; ++column) w_o[row * 8 + column] = row == column ? 1 : 0;
  }
  const Matrix scores = parse_policy("dropkv:window=6,pool=none,epsilon=0")
                            .scorer->score(LayerView(layer), *make_reference_backend()->scoring(layer));
  for (Index dropped = 0; dropped < 14; ++dropped) {
    Kept kept;
    Ranking ranking;
    for (std::int32_t i = 0; i < 20; ++i) {
      if (i != dropped) ranking.push_back(i);
    }
    ranking.push_back(static_cast<std::int32_t>(dropped));
    kept.orders = {{{ranking}}};
    kept.counts = {{{19}}};
    CHECK(scores(0, dropped) == doctest::Approx(squared_error(layer, kept, 0)).epsilon(1e-9));
  }
}

TEST_CASE("DropKV keeps its digits where one entry has nearly all the weight") {
  LayerShape shape = shape_of(2, 1, 30);
  shape.attention.sinks = {0.5, -1.0};
  shape.spread = 9;
  const LayerTensors whole = random_layer(shape, 2);
  std::vector<Matrix> scores;
  for (const auto& backend : backends()) {
    const LayerTensors layer = with_queries(whole, 0, 30, backend->element_type());
    scores.push_back(
        parse_policy("dropkv:window=8,pool=none").scorer->score(LayerView(layer), *backend->scoring(layer)));
  }
  // Logits of 60 have an error of 60 u * sqrt(8) = 1e-5, and p / (1 - p) is squared; 1 - p in float32 costs 1e-2.
  CHECK((scores[0] - scores[1]).cwiseAbs().maxCoeff() <= 1e-4 * scores[0].maxCoeff());
}

TEST_CASE("OBCache's joint score is a sum of squares") {
  for (unsigned seed : {1U, 2U}) {
    const auto layers = prompts(shape_of(4, 2, 40), {seed});
    const Matrix scores = parse_policy("obcache:window=5,pool=none")
                              .scorer->score(LayerView(layers[0]), *make_reference_backend()->scoring(layers[0]));
    CHECK(scores.minCoeff() >= 0);
  }
}

TEST_CASE("CAKE: the cascade gives no layer more than the one-shot split, and none spends more than the budget") {
  const auto layers = prompts(shape_of(2, 2, 40), {1, 2, 3, 4});
  for (Index budget : budgets_from(6, 40)) {
    const HeadCounts whole = keep_on_reference("cake:window=5,variant=published", layers, {budget}).counts[0],
                     cascade = keep_on_reference("cake:window=5,variant=cascade", layers, {budget}).counts[0];
    CHECK(total(whole) <= budget * 8);
    for (std::size_t layer = 0; layer < 4; ++layer) CHECK(cascade[layer][0] <= whole[layer][0]);
  }
}

TEST_CASE("the oracle evicts the smallest sum of terms: no other split of a layer has a smaller bound") {
  const LayerShape shape = shape_of(3, 3, 40);  // without groups a term is exactly the paper's product
  const LayerTensors whole = random_layer(shape, 4);
  const LayerTensors judged = with_queries(whole, 40, whole.tokens, ElementType::float64);
  const auto backend = make_reference_backend();
  const std::vector<Index> budgets{8, 16, 30};
  const auto bounds = [&](const Kept& kept) {
    const LayerKeep all{kept.rankings(0)[0], {kept.counts[0][0], kept.counts[1][0], kept.counts[2][0]}};
    const LayerErrors replayed = backend->layer_errors(judged, {all}, SoftmaxMode::truncated);
    std::vector<double> found;
    for (const OutputError& error : replayed.errors[0]) found.push_back(error.bound);
    return found;
  };
  const std::vector<double> best = bounds(keep_judged("oracle+layer", judged, budgets));
  for (const char* policy : {"random+layer", "snapkv+layer:window=5", "laprox+layer:window=5", "recent"}) {
    const auto layers = prompts(shape, {4});
    const std::vector<double> other = bounds(keep_on_reference(policy, layers, budgets));
    for (std::size_t b = 0; b < budgets.size(); ++b) CHECK(best[b] <= other[b] * (1 + kNothing));
  }
}

TEST_CASE("greedy takes first what costs least, and ends below the oracle") {
  for (unsigned seed : {1U, 2U, 3U}) {
    CAPTURE(seed);
    const LayerShape shape = shape_of(4, 2, 24);
    const LayerTensors whole = random_layer(shape, seed);
    const LayerTensors judged = with_queries(whole, 24, whole.tokens, ElementType::float64);
    const std::vector<Index> budgets{6, 12};
    const Kept greedy = keep_judged("greedy:step=0", judged, budgets),
               oracle = keep_judged("oracle+layer", judged, budgets);
    for (std::size_t b = 0; b < 2; ++b) CHECK(squared_error(judged, greedy, b) <= squared_error(judged, oracle, b));

    // Judged one by one, no entry costs less to lose than the one that goes first, whose score is 0.
    const auto backend = make_reference_backend();
    const Matrix scores =
        parse_policy("greedy:step=0").scorer->score(LayerView::of_judged(judged), *backend->scoring(judged));
    double least = HUGE_VAL, first = -1;
    for (std::size_t head : {0U, 1U}) {
      for (std::int32_t token = 0; token < 24; ++token) {
        Kept without = greedy;
        Ranking& ranking = without.orders[0][0][head];
        ranking.erase(std::find(ranking.begin(), ranking.end(), token));
        ranking.push_back(token);
        without.counts = {{{24, 24}}};
        without.counts[0][0][head] = 23;
        const double cost = squared_error(judged, without, 0);
        least = std::min(least, cost);
        if (scores(static_cast<Index>(head), token) == 0) first = cost;
      }
    }
    CHECK(first == doctest::Approx(least).epsilon(1e-9));
  }
}

}  // namespace laprox::testing
