// The laws that every registered policy obeys, over varied shapes. A new scorer or allocator is covered by being
// registered.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "laprox/error.h"
#include "laprox/scores.h"
#include "support/layers.h"
#include "support/tolerances.h"

namespace laprox::testing {

namespace {

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
  for (const char* variant :
       {"laprox:window=5,kernel=3,gqa=frobenius", "laprox:window=5,kernel=3,gqa=mean-attn,pool=max",
        "laprox:window=5,gqa=mean-norms,pool-stage=none,norm-domain=full",
        "snapkv+ada:window=4,order=pool-first,gqa=max", "h2o+layer:recent=3", "streaming+global:sinks=2"}) {
    policies.push_back(parse_policy(variant));
  }
  return policies;
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
  for (Index b = std::max<Index>(1, policy.scorer->pins().count(context)); b <= context; b += context > 100 ? 23 : 1)
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
  std::set<std::string> names;
  for (const ScorerInfo& info : scorers()) {
    CHECK(names.insert(info.name).second);
    CHECK(!info.summary.empty());
    CHECK(!info.description.empty());
  }
  for (const AllocatorInfo& info : allocators()) {
    CHECK(names.insert(info.name).second);
    CHECK(!info.description.empty());
  }
}

TEST_CASE("both backends give every policy the same finite scores") {
  const auto both = backends();
  for (const LayerShape& shape : varied_shapes()) {
    const auto exact_layers = prompts(shape, *both[0]), fast_layers = prompts(shape, *both[1]);
    for (const Policy& policy : all_policies()) {
      CAPTURE(policy.label);
      CAPTURE(shape.context);
      const Matrix exact = policy.scorer->score(LayerView(exact_layers[0]), *both[0]->scoring(exact_layers[0]));
      const Matrix fast = policy.scorer->score(LayerView(fast_layers[0]), *both[1]->scoring(fast_layers[0]));
      REQUIRE(exact.rows() == shape.geometry.kv_heads);
      REQUIRE(exact.cols() == shape.context);
      check_finite(exact, 0, policy.label);
      CHECK((exact - fast).cwiseAbs().maxCoeff() <= kScore * exact.cwiseAbs().maxCoeff());
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
      const Pins pins = policy.scorer->pins();
      for (const Ranking& ranking : kept.rankings(0)[0]) {
        CHECK(std::set<std::int32_t>(ranking.begin(), ranking.end()).size() == static_cast<std::size_t>(shape.context));
        CHECK(*std::max_element(ranking.begin(), ranking.end()) == shape.context - 1);
        for (Index n = 0; n < pins.count(shape.context); ++n)
          CHECK(pins.contains(ranking[static_cast<std::size_t>(n)], shape.context));
      }
    }
  }
}

TEST_CASE("counts add up to the budget, hold the pinned tokens, and grow with the budget") {
  const auto backend = make_cpu_backend(2);
  for (const LayerShape& shape : varied_shapes()) {
    const auto layers = prompts(shape, *backend);
    for (const Policy& policy : all_policies()) {
      CAPTURE(policy.label);
      const std::vector<Index> budgets = every_budget(policy, shape.context);
      const Kept kept = keep(policy, layers, budgets, *backend);
      const Index pinned = policy.scorer->pins().count(shape.context);
      // AdaKV's largest remainders may move a token between heads as the total grows; every other split is monotone.
      const bool monotone = policy.allocator_name != "ada";
      for (std::size_t b = 0; b < budgets.size(); ++b) {
        REQUIRE(total(kept.counts[b]) == budgets[b] * 2 * shape.geometry.kv_heads);
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
