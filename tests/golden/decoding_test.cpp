#include <doctest/doctest.h>

#include <cmath>

#include "laprox/policy.h"
#include "laprox/schedule.h"
#include "support/layers.h"

namespace laprox {

namespace {

/// One head of size 1 whose query is 1: the logits are the keys.
LayerTensors one_head(const std::vector<double>& keys, Index context, ElementType type) {
  LayerTensors layer;
  const auto tokens = static_cast<Index>(keys.size());
  layer.geometry = {1, 1, 1, 1, 1};
  layer.context_length = context;
  layer.tokens = tokens;
  layer.q = Tensor(type, {1, tokens, 1});
  layer.k = Tensor(type, {1, tokens, 1});
  layer.v = Tensor(type, {1, tokens, 1});
  layer.w_o = Tensor(type, {1, 1});
  const auto fill = [&](auto number) {
    using Number = decltype(number);
    for (Index i = 0; i < tokens; ++i) {
      layer.query_positions.push_back(i);
      layer.q.data<Number>()[i] = 1;
      layer.v.data<Number>()[i] = 1;
      layer.k.data<Number>()[i] = static_cast<Number>(keys[static_cast<std::size_t>(i)]);
    }
    layer.w_o.data<Number>()[0] = 1;
  };
  type == ElementType::float32 ? fill(0.0F) : fill(0.0);
  return layer;
}

}  // namespace

TEST_CASE("H2O while decoding: the example of docs/concepts.md") {
  const std::vector<double> keys{std::log(5), 0, std::log(3), std::log(2), std::log(5), 0};
  const Policy h2o = parse_policy("h2o");
  Matrix sums(1, 3);
  sums << 1.9, 0.7, 0.4;
  std::vector<Matrix> at_cuts;
  const auto evict = [&](const Matrix& of_entries, Index) {
    at_cuts.push_back(of_entries);
    return h2o.scorer->evict(h2o.scorer->score_sums(of_entries), 2);
  };
  for (const auto& backend : {make_reference_backend(), make_cpu_backend(1)}) {
    at_cuts.clear();
    const LayerTensors layer = one_head(keys, 3, backend->element_type());
    const auto lifetimes = backend->accumulate(layer, {sums, {{0, 2}}, {.interval = 1}, evict});
    CHECK(lifetimes == std::vector<Lifetimes>{{6, 3, 4, 5, 6, 6}});
    REQUIRE(at_cuts.size() == 2);
    const double first[] = {2.4, 0.7, 0.2}, second[] = {2.4 + 5.0 / 12, 0.2 + 2.0 / 12, 5.0 / 12};
    for (Index i = 0; i < 3; ++i) {
      CHECK(at_cuts[0](0, i) == doctest::Approx(first[i]).epsilon(1e-6));
      CHECK(at_cuts[1](0, i) == doctest::Approx(second[i]).epsilon(1e-6));
    }
  }
}

TEST_CASE("evict is what rank puts last, for every policy") {
  std::vector<double> scores;
  for (int i = 0; i < 97; ++i) scores.push_back((i * 37 % 23) / 7.0);  // with many ties
  for (const char* name : {"h2o", "h2o:recent=9", "knorm", "streaming", "snapkv+head:window=8", "tova"}) {
    const Policy policy = parse_policy(name);
    for (Index count = 12; count <= 97; ++count) {
      CAPTURE(name);
      CAPTURE(count);
      CHECK(policy.scorer->evict(scores, count) == policy.scorer->Scorer::evict(scores, count));
    }
  }
}

}  // namespace laprox
