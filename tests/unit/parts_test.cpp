// Hand-worked numbers and brute-force comparisons of the small parts.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "allocators/rounding.h"
#include "allocators/top_k.h"
#include "base/text.h"
#include "laprox/error.h"
#include "laprox/metrics.h"
#include "laprox/policy.h"
#include "scorers/groups.h"
#include "scorers/pooling.h"

namespace laprox {

TEST_CASE("average pooling pads zeros and always divides by the kernel") {
  Matrix row(1, 5);
  row << 3, 6, 9, 0, 100;
  pool_prefix(row, 4, Pool::average, 3);
  CHECK(row(0, 0) == 3);
  CHECK(row(0, 1) == 6);
  CHECK(row(0, 2) == 5);
  CHECK(row(0, 3) == 3);
  CHECK(row(0, 4) == 100);  // behind the prefix
}

TEST_CASE("maximum pooling takes the largest valid neighbour") {
  Matrix row(1, 4);
  row << -3, -6, -1, -9;
  pool_prefix(row, 4, Pool::maximum, 3);
  CHECK(row(0, 0) == -3);
  CHECK(row(0, 1) == -1);
  CHECK(row(0, 2) == -1);
  CHECK(row(0, 3) == -1);
}

TEST_CASE("pooling a kernel wider than the row, and no row at all") {
  Matrix row(1, 3);
  row << 1, 2, 6;
  pool_prefix(row, 3, Pool::average, 9);
  CHECK(row(0, 1) == 1);
  pool_prefix(row, 0, Pool::maximum, 3);
  CHECK(row(0, 1) == 1);
  CHECK_THROWS_AS(check_kernel(4, "x"), UsageError);
}

TEST_CASE(
    "average pooling commutes with the group mean, maximum pooling with the group maximum, but not with the mean") {
  std::mt19937 generator(1);
  Matrix heads(4, 20);
  for (Index i = 0; i < heads.size(); ++i) heads.data()[i] = std::uniform_real_distribution<double>()(generator);
  const auto both_ways = [&](Pool pool, GroupReduction reduction) {
    Matrix first = heads, last = reduce_groups(heads, 2, reduction);
    pool_prefix(first, 20, pool, 5);
    pool_prefix(last, 20, pool, 5);
    return (reduce_groups(first, 2, reduction) - last).cwiseAbs().maxCoeff();
  };
  CHECK(both_ways(Pool::average, GroupReduction::mean) < 1e-15);
  CHECK(both_ways(Pool::maximum, GroupReduction::maximum) == 0);
  CHECK(both_ways(Pool::maximum, GroupReduction::mean) > 0.01);
}

TEST_CASE("counts of the top k equal a full sort, with ties to the earlier list and entry") {
  std::mt19937 generator(2);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::vector<double>> lists(1 + generator() % 4);
    std::vector<std::pair<double, std::size_t>> all;
    const double divisor = 1 + generator() % 3;
    for (std::size_t i = 0; i < lists.size(); ++i) {
      // Few distinct values, so that ties at the cut are the rule; negative ones and zeros too.
      for (unsigned n = generator() % 12; n > 0; --n) lists[i].push_back(static_cast<double>(generator() % 7) - 2);
      std::sort(lists[i].rbegin(), lists[i].rend());
      for (double score : lists[i]) all.emplace_back(score / (i == 0 ? divisor : 1), i);
    }
    std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    std::vector<ScoreList> weighted;
    for (std::size_t i = 0; i < lists.size(); ++i) weighted.push_back({lists[i], i == 0 ? divisor : 1});
    for (std::size_t k = 0; k <= all.size(); ++k) {
      std::vector<Index> expected(lists.size(), 0);
      for (std::size_t n = 0; n < k; ++n) ++expected[all[n].second];
      CHECK(top_k_counts(weighted, static_cast<Index>(k)) == expected);
    }
  }
}

TEST_CASE("largest remainders reach the total, cap, and settle ties to the lower index") {
  CHECK(largest_remainder({0.8, 2.4}, 4, 4) == std::vector<Index>{1, 3});
  CHECK(largest_remainder({1.5, 1.5, 1.0}, 4, 9) == std::vector<Index>{2, 1, 1});
  CHECK(largest_remainder({0.8 * 6, 0.8, 0.4}, 6, 9) ==
        std::vector<Index>{5, 1, 0});  // 4.8 and 0.8 tie, though 6 * 0.8 rounds
  CHECK(largest_remainder({3.0, 0.0}, 6, 3) == std::vector<Index>{3, 3});
  CHECK_THROWS_AS(largest_remainder({1.0}, 5, 2), Bug);
}

TEST_CASE("a ranking puts pinned tokens first, then scores, and ties by token") {
  const std::vector<double> scores{1, 5, 5, 0, 9, 9};
  CHECK(rank_by_score(scores, {.first = 1, .last = 1}) == Ranking{0, 5, 4, 1, 2, 3});
  CHECK(rank_by_score(scores, {}) == Ranking{4, 5, 1, 2, 0, 3});
  CHECK(rank_by_score(scores, {.first = 4, .last = 4}) == Ranking{0, 1, 2, 3, 4, 5});
}

TEST_CASE("H2O's one ranking holds the kept set of every budget") {
  std::mt19937 generator(4);
  for (const char* share : {"0.5", "0", "0.25", "0.9"}) {
    const Policy policy = parse_policy(std::string("h2o:recent=") + share);
    const double recent_share = std::stod(share);
    for (int round = 0; round < 50; ++round) {
      const int context = 1 + static_cast<int>(generator() % 30);
      std::vector<double> scores;
      for (int i = 0; i < context; ++i) scores.push_back(static_cast<double>(generator() % 9));
      const Ranking ranking = policy.scorer->rank(scores);
      for (int budget = 1; budget <= context; ++budget) {
        const int heavy = static_cast<int>(std::floor(budget * (1 - recent_share) + 1e-9)),
                  candidates = context - (budget - heavy);
        std::vector<int> order(static_cast<std::size_t>(candidates));
        for (int i = 0; i < candidates; ++i) order[static_cast<std::size_t>(i)] = i;
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
          return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
        });
        std::set<int> expected(order.begin(), order.begin() + heavy);
        for (int i = candidates; i < context; ++i) expected.insert(i);
        CHECK(std::set<int>(ranking.begin(), ranking.begin() + budget) == expected);
      }
    }
  }
}

TEST_CASE("budgets are tokens, percentages or bytes") {
  DumpInfo dump;
  dump.context_length = 1024;
  LayerSummary layer{.geometry = {6, 2, 64, 64, 384}};
  layer.k_type = layer.v_type = ElementType::float16;
  dump.layers = {layer, layer};
  const auto tokens = [&](const char* text) { return resolve(parse_budget(text), dump).tokens_per_head(); };
  CHECK(tokens("128") == 128);
  CHECK(tokens("5%") == 51);
  CHECK(tokens("20%") == 205);
  CHECK(tokens("100%") == 1024);
  CHECK(tokens("12.5%") == 128);
  CHECK(tokens("64KiB") == 64);  // 2 layers x 2 heads x 128 elements x 2 bytes = 1024 bytes per token
  CHECK(tokens("1GiB") == 1024);
  CHECK(resolve(parse_budget("5%"), dump).pairs() == 204);
  for (const char* text : {"", "0", "-1", "5 %x", "101%", "0%", "2.5", "many", "1e400", "nan", "inf", "5MB"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parse_budget(text), UsageError);
  }
  CHECK_THROWS_AS(tokens("1025"), UsageError);
  CHECK_THROWS_AS(tokens("0.01%"), UsageError);
  CHECK_THROWS_AS(tokens("0.1KiB"), UsageError);
}

TEST_CASE("policies parse into parts with their options spelled out") {
  const Policy policy = parse_policy(" SnapKV+ada:floor=0.50 , window=16,pool=avg ");
  CHECK(
      to_string(policy) ==
      "snapkv+ada:window=16,pool=avg,kernel=7,gqa=mean,order=reduce-first,floor=0.5,variant=official,normalize=false,rounding=exact");
  CHECK(parse_policy("laprox").allocator_name == "global");
  CHECK(parse_policy("snapkv").allocator_name == "head");
  CHECK(parse_policy("laprox:gqa=frobenius").scorer_options.text("pool-stage") == "final");
  CHECK(split_policies("snapkv,laprox:gqa=frobenius,pool=max,h2o") ==
        std::vector<std::string>{"snapkv", "laprox:gqa=frobenius,pool=max", "h2o"});
  for (const char* text :
       {"", ":x=1", "snapkv+", "+ada", "snapkv:", "snapkv:window", "snapkv:window=", "snapkv:window=1.5",
        "snapkv:window=99999999999999999999", "snapkv+ada:floor=2", "snapkv+ada:floor=nan", "full:x=1"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parse_policy(text), UsageError);
  }
}

TEST_CASE("the nearest name is the one that a slip meant") {
  const std::vector<std::string> names{"full", "streaming", "snapkv", "laprox"};
  CHECK(nearest("snapvk", names) == "snapkv");
  CHECK(nearest("str", names) == "streaming");
  CHECK(nearest("lprox", names) == "laprox");
}

TEST_CASE("quantiles interpolate between order statistics") {
  CHECK(quantile({4, 1, 3, 2}, 0.5) == 2.5);
  CHECK(quantile({4, 1, 3, 2}, 0.95) == doctest::Approx(3.85));
  CHECK(quantile({7}, 0.99) == 7);
  CHECK(quantile({1, 2}, 1) == 2);
}

TEST_CASE("metrics of a hand-made error") {
  ExactOutput exact{Matrix(2, 2), {25, 0}};
  exact.output << 3, 4, 0, 2;
  // Query 0 moves by (-3, -4) to zero; query 1 by (2, 0).
  const OutputError error{.query_error = {25, 4},
                          .kept_square = {0, 8},
                          .kept_product = {0, 4},
                          .head_error = {1, 0},
                          .retained_mass = 0.5,
                          .bound = 29};
  const LayerMetrics metrics = layer_metrics(norms_of(exact), error, SoftmaxMode::truncated);
  CHECK(metrics.relative_error == doctest::Approx(1));  // sqrt(29 / 29)
  CHECK(metrics.query_error_mean == 1);
  CHECK(metrics.cosine_min == 0);  // an output of zero points nowhere
  CHECK(metrics.cosine_mean == doctest::Approx(0.5 * std::sqrt(0.5)));
  CHECK(metrics.head_relative_error == std::vector<double>{0.2, 0});
  CHECK(metrics.bound_ratio == doctest::Approx(29 / std::sqrt(29.0)));
  const ModelMetrics model = model_metrics({metrics, {}});
  CHECK(model.relative_error == doctest::Approx(1));
  CHECK(model.mean_error == doctest::Approx(0.5));
}

}  // namespace laprox
