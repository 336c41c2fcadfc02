// The worked examples of the rest of the catalogue, on the same fixture. Their numbers come from the original
// repositories' own code (kvpress 8bb29b9, KVCache-Factory c97f9d7, AdaKV efe4e2e, DefensiveKV 9251b95, cakekv c4675ce,
// Lava 71d3cc8, R-KV d15c976), or, for DropKV, from its formula by an independent program.

#include <doctest/doctest.h>

#include <numeric>

#include "replay/selection.h"
#include "support/golden.h"

namespace laprox::testing {

namespace {

/// Calls check(backend) for both backends.
template <class Check>
void on_both(const Check& check) {
  for (const auto& backend : backends()) {
    CAPTURE(backend->name());
    check(*backend);
  }
}

/// A contest of `layers` equal layers with one KV head each, whose scores do not matter.
Contest plain_contest(Index layers, Index context, Index window) {
  Contest contest;
  contest.context_length = context;
  contest.pinned = window;
  const std::vector<double> scores(static_cast<std::size_t>(context - window), 1.0);
  contest.scores.assign(static_cast<std::size_t>(layers), {scores});
  contest.pinned_sum.assign(static_cast<std::size_t>(layers), 0.0);
  return contest;
}

/// Kept tokens of each layer's one head.
std::vector<Index> layer_counts(const std::string& policy, Index layers, Index context, Index window, Index budget) {
  const HeadCounts counts =
      parse_policy(policy).allocator->allocate(plain_contest(layers, context, window), Budget(budget, layers));
  std::vector<Index> found;
  for (const auto& layer : counts) found.push_back(layer[0]);
  return found;
}

Index sum_of(const std::vector<Index>& values) { return std::accumulate(values.begin(), values.end(), Index{0}); }

}  // namespace

TEST_CASE("ObservedAttention divides the column sum by the queries that see the token") {
  on_both([](const Backend& backend) {
    const Matrix scores = score("observed-attention", 0, backend);
    check_row(scores, 0, {.3741, .1698, .4848, .0548, .3387, .1257});
    check_row(scores, 1, {.3684, .3025, .2319, .3689, .0843, .0744});
  });
  check_kept("observed-attention", {{0, 1, 2, 4}, {0, 1, 2, 3}});
}

TEST_CASE("TOVA keeps one set per layer, with or without the last token") {
  on_both([](const Backend& backend) {
    const Matrix scores = score("tova", 0, backend);
    for (Index head : {0, 1}) check_row(scores, head, {.1286, .1446, .1309, .3330, .1629, .1001});
  });
  check_kept("tova", {{1, 2, 3, 4}, {1, 2, 3, 4}});
  check_kept("tova:force-last=true", {{1, 3, 4, 5}, {1, 3, 4, 5}});
}

TEST_CASE("Knorm keeps the smallest keys") {
  on_both([](const Backend& backend) {
    const Matrix scores = score("knorm", 0, backend);
    check_row(scores, 0, {-1.1662, -2.5612, -1.9235, -1.9105, -2.0248, -2.0});
    check_row(scores, 1, {-1.3601, -1.3342, -2.1541, -2.1932, -1.7804, -1.0296});
  });
  check_kept("knorm", {{0, 2, 3, 5}, {0, 1, 4, 5}});
  // KVCache-Factory leaves the first layers whole.
  check_kept("knorm:skip-layers=1", {{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}});
}

TEST_CASE("KeyDiff keeps the keys that differ from the anchor, at once or block by block") {
  on_both([](const Backend& backend) {
    const Matrix scores = score("keydiff", 0, backend);
    check_row(scores, 0, {-.0310, -.9478, .4031, -.9687, -.0029, -.9374});
    check_row(scores, 1, {.1311, .2673, -.9932, -.0744, -.3963, -1.0});
  });
  check_kept("keydiff", {{0, 2, 4, 5}, {0, 1, 3, 4}});
  check_kept("keydiff:block=1", {{0, 2, 4, 5}, {0, 1, 3, 4}});
}

TEST_CASE("PyramidKV's published integer steps overspend, ours does not") {
  const std::vector<Index> kvcf = layer_counts("snapkv+pyramid:window=8,variant=kvcf", 32, 8192, 8, 128);
  CHECK(kvcf[0] == 234 + 8);
  CHECK(kvcf[15] == 129 + 8);
  CHECK(kvcf[31] == 17 + 8);
  CHECK(sum_of(kvcf) == 4016 + 32 * 8);  // 3840 were asked for
  CHECK(layer_counts("snapkv+pyramid:window=8,variant=adakv", 32, 8192, 8, 128) == kvcf);
  // A larger budget takes tokens from the last layer.
  CHECK(layer_counts("snapkv+pyramid:window=8,variant=kvcf", 32, 8192, 8, 121)[31] == 35 + 8);
  CHECK(layer_counts("snapkv+pyramid:window=8,variant=kvcf", 32, 8192, 8, 122)[31] == 6 + 8);

  const std::vector<Index> exact = layer_counts("snapkv+pyramid:window=8", 32, 8192, 8, 128);
  CHECK(exact[0] == 234 + 8);
  CHECK(exact[31] == 6 + 8);
  CHECK(sum_of(exact) == 32 * 128);
}

TEST_CASE("PyramidKV in kvpress is uniform unless the last layer holds the window") {
  // 1638 of 8192 tokens: from 2 * 1638 - 81.9 down to 81.9, window included.
  const std::vector<Index> line = layer_counts("snapkv+pyramid:window=64,variant=kvpress", 32, 8192, 64, 1638);
  CHECK(line[0] == 3194);
  CHECK(line[31] == 82);
  const std::vector<Index> flat = layer_counts("snapkv+pyramid:window=64,variant=kvpress", 32, 8192, 64, 819);
  CHECK(flat == std::vector<Index>(32, 819));
}

TEST_CASE("AdaKV's published roundings and safeguards") {
  const std::string base = "snapkv+ada:window=2,kernel=3,pool=avg,";
  on_both([&](const Backend& backend) {
    const auto counts = [&](const std::string& options) {
      return keep(parse_policy(base + options), fixture(backend), {4}, backend).counts[0][0];
    };
    // round([0.8, 2.4]): one of the layer's four slots stays empty.
    CHECK(counts("floor=0.2,rounding=official") == std::vector<Index>{3, 4});
    CHECK(counts("floor=0.5,rounding=official") == std::vector<Index>{4, 4});
  });
  check_kept(base + "variant=kvpress", {{1, 4, 5}, {1, 2, 3, 4, 5}});
  check_kept(base + "variant=kvpress,floor=0.75", {{1, 4, 5}, {1, 2, 3, 4, 5}});
  check_kept(base + "variant=fork", {{1, 4, 5}, {1, 2, 3, 4, 5}});
  // Without the window in it, the same guarantee is worth two prefix tokens.
  check_kept(base + "variant=fork,floor=0.5", {{1, 2, 4, 5}, {2, 3, 4, 5}});
  check_kept("adakv:window=2,kernel=3,pool=avg", {{1, 4, 5}, {1, 2, 3, 4, 5}});
}

TEST_CASE("CriticalKV fills half by attention and half by attention times value norm") {
  check_kept("criticalkv:window=2,kernel=3,pool=avg,variant=kvpress", {{0, 3, 4, 5}, {1, 2, 4, 5}});
  // With the window taken out, each stage has one of the two places: 1 and 3 lead by attention, then by s'.
  check_kept("criticalkv:window=2,kernel=3,pool=avg", {{1, 3, 4, 5}, {1, 2, 4, 5}});
  on_both([](const Backend& backend) {
    const LayerTensors layer = fixture_layer(0, backend.element_type());
    const Matrix norms = backend.scoring(layer)->value_l1_norms();
    check_row(norms, 0, {7.42, 1.37, 3.71, 6.51, 2.97, 4.04});
    check_row(norms, 1, {12.92, 3.01, .95, 9.35, 6.27, 1.14});
    check_row(norms, 2, {7.36, 5.93, 13.13, 4.45, 6.51, 7.02});
    check_row(norms, 3, {3.44, 5.05, 7.33, 3.97, 7.35, 4.40});
  });
}

TEST_CASE("CriticalAdaKV fills AdaKV's head budgets in two stages") {
  const std::string policy = "criticaladakv:window=2,kernel=3,pool=avg";
  check_kept(policy, {{3, 4, 5}, {1, 2, 3, 4, 5}}, 4);
  check_kept(policy, {{4, 5}, {1, 2, 4, 5}}, 3);
}

TEST_CASE("DefensiveKV takes the worst case over heads and queries") {
  on_both([](const Backend& backend) {
    const Matrix scores = score("defensivekv:window=2,kernel=3", 0, backend);
    check_row(scores, 0, {.1576, .0935, .0494, .1576, .3075, .3075});
    check_row(scores, 1, {.1020, .2103, .3075, .1303, .3075, .3075});
  });
  check_kept("defensivekv:window=2,kernel=3", {{0, 3, 4, 5}, {1, 2, 4, 5}});
  check_kept("layer-defensivekv:window=2,kernel=3", {{0, 3, 4, 5}, {1, 2, 4, 5}, {1, 2, 4, 5}, {0, 3, 4, 5}});
}

TEST_CASE("CAKE adds the variance over queries, and weighs layers by entropy and variance") {
  on_both([](const Backend& backend) {
    const Matrix scores = score("cake:window=2,kernel=3", 0, backend);
    check_row(scores, 0, {5.2922, 8.8820, 7.7005, 4.3716});
    check_row(scores, 1, {.9803, 8.5439, 11.6207, 11.5633});
    const Policy policy = parse_policy("cake:window=2,kernel=3");
    std::vector<double> preferences;
    for (const LayerTensors& layer : fixture(backend)) {
      preferences.push_back(policy.scorer->preference(LayerView(layer), *backend.scoring(layer)));
    }
    CHECK(preferences[0] == doctest::Approx(4.2368).epsilon(1e-4));
    CHECK(preferences[1] == doctest::Approx(.8779).epsilon(1e-4));
  });
  const std::vector<Tokens> kept{{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}, {4, 5}, {4, 5}};
  for (const char* variant : {"exact", "published", "cascade"}) {
    check_kept(std::string("cake:window=2,kernel=3,variant=") + variant, kept);
  }
}

TEST_CASE("LAVa weighs heads by their largest value and layers by entropy") {
  on_both([](const Backend& backend) {
    const Matrix scores = score("lava:window=2,kernel=3", 0, backend);
    check_row(scores, 0, {.6540, .9935, .9935, .9935});
    check_row(scores, 1, {.6801, 1.3104, 1.9795, 1.9795});
  });
  check_kept("lava:window=2,kernel=3,variant=code", {{4, 5}, {2, 3, 4, 5}, {1, 4, 5}, {1, 2, 4, 5}});
}

TEST_CASE("LagKV ranks tokens inside their partition") {
  on_both([](const Backend& backend) {
    const Matrix scores = score("lagkv:lag=2,sinks=1", 0, backend);
    for (Index head : {0, 1}) check_row(scores, head, {1, 0, .5, 1, 1, 1});
    check_row(score("lagkv:lag=2,sinks=1,cross-scoring=true", 0, backend), 0, {1, .2142, .7858, 1, 1, 1});
  });
  check_kept("lagkv:lag=2,sinks=1", {{0, 3, 4, 5}, {0, 3, 4, 5}});
}

TEST_CASE("R-KV takes off how much a key resembles the others") {
  on_both([](const Backend& backend) {
    const Matrix scores = score("rkv:window=2,kernel=3", 0, backend);
    check_row(scores, 0, {-.1291, -.1784, -.0689, -.1471});
    check_row(scores, 1, {-.1163, -.1238, -.1377, -.1020});
    check_row(score("rkv:window=2,kernel=3,lambda=0.5", 1, backend), 1, {.0229, .1096, .1406, .1207});
  });
  check_kept("rkv:window=2,kernel=3", {{0, 2, 4, 5}, {0, 3, 4, 5}, {2, 3, 4, 5}, {2, 3, 4, 5}});
  check_kept("rkv:window=2,kernel=3,lambda=0.5", {{2, 3, 4, 5}, {2, 3, 4, 5}, {2, 3, 4, 5}, {2, 3, 4, 5}});
}

TEST_CASE("CUR multiplies the block shares of squared norms") {
  on_both([](const Backend& backend) {
    const Matrix scores = score("cur:block=4,sinks=1", 0, backend).rightCols(5);  // the first token is pinned
    check_row(scores, 0, {.0146, .1251, .0933, .2205, .5011});
    check_row(scores, 1, {.0392, .2292, .0621, .4310, .2002});
  });
  check_kept("cur:block=4,sinks=1", {{0, 2, 4, 5}, {0, 2, 4, 5}});
}

TEST_CASE("ChunkKV keeps whole chunks") {
  check_kept("chunkkv:window=2,kernel=3,pool=avg,chunk=2,variant=kvpress", {{2, 3, 4, 5}, {2, 3, 4, 5}});
  check_kept("chunkkv:window=2,kernel=3,pool=avg,chunk=2", {{2, 3, 4, 5}, {2, 3, 4, 5}});
}

TEST_CASE("ExpectedAttention and CapKV guess the coming queries from the prompt's, before RoPE") {
  on_both([](const Backend& backend) {
    const LayerTensors layer = rotated_fixture_layer(0, backend.element_type());
    const auto check = [&](const std::string& text, const std::vector<double>& head0, const std::vector<double>& head1,
                           const Tokens& kept0, const Tokens& kept1) {
      const Policy policy = parse_policy(text + ":future=4,sinks=1");
      const Matrix scores = policy.scorer->score(LayerView(layer), *backend.scoring(layer));
      check_row(scores.rightCols(5), 0, head0);  // the first token is pinned
      check_row(scores.rightCols(5), 1, head1);
      Selector selector(policy, {Budget(4, 2)}, backend.threads());
      selector.add_layer(LayerView(layer), *backend.scoring(layer));
      const Kept kept{selector.finish()};
      CHECK(kept.tokens(0, 0, 0) == kept0);
      CHECK(kept.tokens(0, 0, 1) == kept1);
    };
    check("expected-attention", {.0825, .5491, .2653, .3773, .3764}, {.3116, .6241, .2642, .2912, .3232}, {0, 2, 4, 5},
          {0, 1, 2, 5});
    check("capkv", {.0453, .3858, .2621, .0754, .3929}, {.3713, .3728, .0274, .0989, .3103}, {0, 2, 3, 5},
          {0, 1, 2, 5});
  });
}

TEST_CASE("OBCache weighs what deleting a key, a value or both does") {
  on_both([](const Backend& backend) {
    const auto check = [&](const std::string& options, const std::vector<double>& head0,
                           const std::vector<double>& head1) {
      CAPTURE(options);
      const Matrix scores = score("obcache:window=2,kernel=3," + options, 0, backend);
      check_row(scores, 0, head0);
      check_row(scores, 1, head1);
    };
    check("score=value,pool=none", {.5220, .0542, 1.8412, .1714}, {.3936, .0484, 3.7339, 1.3498});
    check("score=joint,pool=none", {.7970, 1.6239, 4.9430, .7466}, {.7638, .0360, 18.2949, 2.3021});
    check("score=value", {.5220, 1.8412, 1.8412, 1.8412}, {.3936, 3.7339, 3.7339, 3.7339});
    check("score=key", {1.3711, 1.3711, 1.3711, 1.1415}, {.0989, 5.6478, 5.6478, 5.6478});
    check("score=joint", {1.6239, 4.9430, 4.9430, 4.9430}, {.7638, 18.2949, 18.2949, 18.2949});
  });
  check_kept("obcache:window=2,kernel=3,score=value", {{1, 2, 4, 5}, {1, 2, 4, 5}});
  check_kept("obcache:window=2,kernel=3,score=key", {{0, 1, 4, 5}, {1, 2, 4, 5}});
  check_kept("obcache:window=2,kernel=3", {{1, 2, 4, 5}, {1, 2, 4, 5}});
}

TEST_CASE("DropKV scores the exact change of the output") {
  on_both([](const Backend& backend) {
    const Matrix raw = score("dropkv:window=2,pool=none", 0, backend);
    check_row(raw, 0, {.5243, .2893, .9681, .0428});
    check_row(raw, 1, {.1024, .0201, 3.9907, .3207});
    const Matrix pooled = score("dropkv:window=2,kernel=3", 0, backend);
    check_row(pooled, 0, {.5243, .9681, .9681, .9681});
    check_row(pooled, 1, {.1024, 3.9907, 3.9907, 3.9907});
  });
  check_kept("dropkv:window=2,kernel=3", {{1, 2, 4, 5}, {1, 2, 4, 5}});
}

}  // namespace laprox::testing
