// The laws that every registered policy obeys, over varied shapes. A new scorer or allocator is covered by being
// registered.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "laprox/error.h"
#include "laprox/methods.h"
#include "laprox/scores.h"
#include "replay/selection.h"
#include "support/layers.h"
#include "support/tolerances.h"

namespace laprox::testing {

namespace {

bool spends_exactly(const Policy& policy) {
  return policy.scorer->traits().spends_exactly && policy.allocator->traits().spends_exactly &&
         !policy.scorer->traits().keeps_everything;
}

/// Every scorer with every allocator that it composes with, with a window that fits small layers.
std::vector<Policy> all_policies() {
  std::vector<Policy> policies;
  for (const ScorerInfo& scorer : scorers()) {
    for (const AllocatorInfo& allocator : allocators()) {
      const bool windowed =
          std::any_of(scorer.options.begin(), scorer.options.end(), [](const auto& o) { return o.name == "window"; });
      try {
        policies.push_back(parse_policy(scorer.name + "+" + allocator.name + (windowed ? ":window=5,kernel=3" : "")));
      } catch (const UsageError&) {
        // Not every pair makes sense; that each scorer has its default allocator is checked below.
      }
    }
  }
  for (const char* variant : {"laprox:window=5,kernel=3,gqa=frobenius",
                              "laprox:window=5,kernel=3,gqa=mean-attn,pool=max",
                              "laprox:window=5,gqa=mean-norms,pool-stage=none,norm-domain=full",
                              "snapkv+ada:window=4,order=pool-first,gqa=max",
                              "snapkv+ada:window=4,normalize=true,rounding=official",
                              "snapkv+ada:window=4,variant=kvpress",
                              "snapkv+ada:window=4,variant=fork",
                              "h2o+layer:recent=3",
                              "streaming+global:sinks=2",
                              "tova:force-last=true",
                              "knorm:skip-layers=1",
                              "keydiff:block=3",
                              "criticalkv:window=4,variant=kvpress",
                              "criticaladakv:window=4,hard-window=true",
                              "defensivekv:window=4,bias=window",
                              "layer-defensivekv:window=4",
                              "cake:window=4,variant=cascade",
                              "lava:window=4,variant=code",
                              "lagkv:lag=5,cross-scoring=true",
                              "lagkv:lag=5",
                              "rkv:window=4,kernel=3,lambda=0.5,threshold=0.2",
                              "cur:leverage=average,block=7",
                              "chunkkv:window=4,chunk=6",
                              "chunkkv:window=4,chunk=6,variant=kvpress",
                              "obcache:window=4,score=key,gqa=mean",
                              "obcache:window=4,score=value",
                              "dropkv:window=4,kernel=3,order=pool-first",
                              "snapkv+pyramid:window=4,variant=kvcf",
                              "snapkv+pyramid:window=4,variant=kvpress",
                              "snapkv+per-layer:window=4,shares=3/1",
                              "snapkv+per-layer:window=4,shares=3/1,variant=kvpress",
                              "finch:window=4,chunk=6",
                              "finch:window=4,chunk=6,quota=kvpress",
                              "entropy-chunkkv:window=4,chunk=5,spiky=2,hard-window=true",
                              "chunkpress:chunk=7,window=3,kernel=3,quota=kvpress",
                              "chunkpress:chunk=5,base=keydiff",
                              "chunkpress:chunk=5,base=knorm",
                              "critical-expected-attention:variant=kvpress-0.5.5",
                              "criticalada-expected-attention:hard-sinks=true",
                              "greedy:step=0.1"}) {
    policies.push_back(parse_policy(variant));
  }
  return policies;
}

const ScorerInfo& scorer_of(const Policy& policy) {
  return *std::find_if(scorers().begin(), scorers().end(), [&](const auto& s) { return s.name == policy.scorer_name; });
}

/// Whether a larger budget must keep all that a smaller one keeps.
bool nested(const Policy& policy) {
  // DefensiveKV marks more tokens as the budget grows, which only adds where every head has room for its marks.
  if (policy.scorer_name == "defensivekv" && policy.allocator_name != "head" && policy.allocator_name != "layer") {
    return false;
  }
  const auto allocator = std::find_if(allocators().begin(), allocators().end(),
                                      [&](const auto& a) { return a.name == policy.allocator_name; });
  return scorer_of(policy).nested && allocator->nested && spends_exactly(policy) &&
         to_string(policy).find("block=3") == std::string::npos;  // KeyDiff by blocks
}

/// Scores that are places in an order, or marks: rounding moves none of them or whole steps.
bool discrete(const Policy& policy) {
  return policy.scorer->traits().scores_are_places ||
         std::set<std::string>{"keydiff", "lagkv", "defensivekv"}.contains(policy.scorer_name);
}

std::vector<LayerTensors> prompts(const LayerShape& shape, const Backend& backend) {
  std::vector<LayerTensors> layers;
  for (unsigned seed : {1U, 2U}) {
    const LayerTensors layer = random_layer(shape, seed);
    layers.push_back(with_queries(layer, 0, layer.context_length, backend.element_type()));
    layers.back().layer = static_cast<Index>(layers.size()) - 1;
  }
  return layers;
}

std::vector<Index> every_budget(const Policy& policy, Index context) {
  std::vector<Index> budgets;
  for (Index b = std::max<Index>(1, policy.scorer->traits().pins.count(context)); b <= context;
       b += context > 100 ? 23 : 1)
    budgets.push_back(b);
  return budgets;
}

bool contains(const std::vector<int>& large, const std::vector<int>& small) {
  return std::includes(large.begin(), large.end(), small.begin(), small.end());
}

}  // namespace

TEST_CASE("every scorer parses with its default allocator, and a policy's full text gives the policy again") {
  for (const ScorerInfo& scorer : scorers()) CHECK_NOTHROW(parse_policy(scorer.name));
  for (const Policy& policy : all_policies()) {
    CAPTURE(policy.label);
    CHECK(parse_policy(to_string(policy)) == policy);
  }
}

TEST_CASE("names are unique and every part describes itself") {
  std::set<std::string> policies, splits;
  for (const ScorerInfo& info : scorers()) {
    CAPTURE(info.name);
    CHECK(policies.insert(info.name).second);
    CHECK(!info.summary.empty());
    CHECK(!info.description.empty());
    CHECK(!info.needs.empty());
  }
  for (const Method& method : methods()) {
    CAPTURE(method.name);
    CHECK(policies.insert(method.name).second);
    CHECK(parse_policy(method.name) == parse_policy(method.policy));
  }
  // An option of both parts of a policy would go to the scorer, and the allocator's could not be said.
  for (const ScorerInfo& scorer : scorers()) {
    for (const AllocatorInfo& allocator : allocators()) {
      if (!scorer.only_allocator.empty() && scorer.only_allocator != allocator.name) continue;
      for (const OptionSpec& mine : scorer.options) {
        CAPTURE(scorer.name);
        for (const OptionSpec& other : allocator.options) CHECK(mine.name != other.name);
      }
    }
  }
  for (const AllocatorInfo& info : allocators()) {
    CHECK(splits.insert(info.name).second);
    CHECK(!info.description.empty());
    CHECK(!info.scope.empty());
  }
}

TEST_CASE("both backends give every policy the same finite scores") {
  const auto both = backends();
  for (const LayerShape& shape : varied_shapes()) {
    const auto exact_layers = prompts(shape, *both[0]), fast_layers = prompts(shape, *both[1]);
    for (const Policy& policy : all_policies()) {
      CAPTURE(policy.label);
      CAPTURE(shape.context);
      const std::vector<Index> budgets{
          std::max(policy.scorer->traits().pins.count(shape.context), (shape.context + 1) / 2)};
      const auto scores = [&](const Backend& backend, const LayerTensors& layer) {
        return layer_scores(*policy.scorer, policy.label, budgets, LayerView(layer), *backend.scoring(layer)).at(0);
      };
      const Matrix exact = scores(*both[0], exact_layers[0]), fast = scores(*both[1], fast_layers[0]);
      REQUIRE(exact.rows() == shape.geometry.kv_heads);
      REQUIRE(exact.cols() == shape.context);
      if (policy.scorer_name == "greedy") continue;  // one near tie, and the rest of the path is another
      if (discrete(policy)) {
        CHECK(keep(policy, exact_layers, budgets, *both[0]).tokens(0, 0, 0) ==
              keep(policy, fast_layers, budgets, *both[1]).tokens(0, 0, 0));
      } else {
        CHECK((exact - fast).cwiseAbs().maxCoeff() <= kScore * exact.cwiseAbs().maxCoeff() + kNothing);
      }
    }
  }
}

TEST_CASE("rankings are permutations with the pinned tokens first") {
  const auto backend = make_cpu_backend(2);
  for (const LayerShape& shape : varied_shapes()) {
    const auto layers = prompts(shape, *backend);
    for (const Policy& policy : all_policies()) {
      CAPTURE(policy.label);
      const Kept kept = keep(policy, layers, {shape.context}, *backend);
      const Pins pins = policy.scorer->traits().pins;
      for (const Ranking& ranking : kept.rankings(0)[0]) {
        CHECK(std::set<std::int32_t>(ranking.begin(), ranking.end()).size() == static_cast<std::size_t>(shape.context));
        CHECK(*std::max_element(ranking.begin(), ranking.end()) == shape.context - 1);
        for (Index n = 0; n < pins.count(shape.context); ++n)
          CHECK(pins.contains(ranking[static_cast<std::size_t>(n)], shape.context));
      }
    }
  }
}

TEST_CASE("counts add up to the budget, hold the pinned tokens, and nested policies only ever add tokens") {
  const auto backend = make_cpu_backend(2);
  for (const LayerShape& shape : varied_shapes()) {
    const auto layers = prompts(shape, *backend);
    for (const Policy& policy : all_policies()) {
      CAPTURE(policy.label);
      const std::vector<Index> budgets = every_budget(policy, shape.context);
      const Kept kept = keep(policy, layers, budgets, *backend);
      const Index pinned = policy.scorer->traits().pins.count(shape.context);
      const bool monotone = nested(policy);
      for (std::size_t b = 0; b < budgets.size(); ++b) {
        if (spends_exactly(policy)) REQUIRE(total(kept.counts[b]) == budgets[b] * 2 * shape.geometry.kv_heads);
        for (std::size_t layer = 0; layer < 2; ++layer) {
          for (std::size_t head = 0; head < kept.counts[b][layer].size(); ++head) {
            REQUIRE(kept.counts[b][layer][head] >= pinned);
            REQUIRE(kept.counts[b][layer][head] <= shape.context);
            if (monotone && b > 0) REQUIRE(contains(kept.tokens(b, layer, head), kept.tokens(b - 1, layer, head)));
          }
        }
      }
    }
  }
}

TEST_CASE("a later key cannot change what an earlier query gave an earlier token") {
  const auto both = backends();
  LayerShape shape;
  for (const auto& backend : both) {
    const LayerTensors whole = random_layer(shape, 3);
    LayerTensors cut = with_queries(whole, 0, 10, backend->element_type());
    cut.context_length = 10;
    LayerTensors changed = with_queries(whole, 0, 10, backend->element_type());
    changed.context_length = 10;
    for (Index head = 0; head < 2; ++head) {
      for (Index i = 10; i < whole.tokens; ++i) {
        for (Index c = 0; c < 8; ++c) {
          const Index at = (head * whole.tokens + i) * 8 + c;
          if (backend->element_type() == ElementType::float64)
            changed.k.data<double>()[at] = 100;
          else
            changed.k.data<float>()[at] = 100;
        }
      }
    }
    CHECK(backend->scoring(cut)->column_sums() == backend->scoring(changed)->column_sums());
    CHECK(backend->scoring(cut)->window_statistics(4).sum == backend->scoring(changed)->window_statistics(4).sum);
  }
}

}  // namespace laprox::testing
