// Work that several ranks share, here threads: what they find is what one finds alone, to the bit.

#include "laprox/ranks.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "allocators/top_k.h"
#include "laprox/backend.h"
#include "laprox/policy.h"
#include "laprox/shares.h"
#include "laprox/sweep.h"
#include "support/layers.h"
#include "support/thread_ranks.h"

namespace laprox {

using testing::ThreadRanks;

namespace {

/// A dump of random layers in memory, with these KV heads each.
class RandomDump : public LayerSource {
 public:
  RandomDump(const std::vector<Index>& kv_heads, unsigned seed) {
    for (const Index heads : kv_heads) {
      const testing::LayerShape shape{.geometry = {2 * heads, heads, 8, 8, 16}, .context = 40, .decoded = 6};
      LayerTensors layer = testing::random_layer(shape, seed + static_cast<unsigned>(layers_.size()));
      layer.layer = static_cast<Index>(layers_.size());
      LayerSummary summary{.geometry = shape.geometry, .attention = layer.attention, .has_residual_norms = true};
      summary.q_type = summary.k_type = summary.v_type = summary.w_o_type = ElementType::float64;
      info_.layers.push_back(summary);
      layers_.push_back(std::move(layer));
    }
    info_.path = "random";
    info_.context_length = layers_[0].context_length;
    info_.tokens = layers_[0].tokens;
    info_.query_positions = layers_[0].query_positions;
  }

  const DumpInfo& info() const override { return info_; }
  LayerTensors read_layer(Index layer, DumpInfo::Rows rows, ElementType type) const override {
    const auto position = [&](Index row) { return info_.query_positions[static_cast<std::size_t>(row)]; };
    const Index first = rows.count() > 0 ? position(rows.first) : 0;
    return testing::with_queries(layers_[static_cast<std::size_t>(layer)], first,
                                 rows.count() > 0 ? position(rows.last - 1) + 1 : 0, type);
  }
  void check_other_queries(Index, DumpInfo::Rows) const override {}
  std::optional<Matrix> read_output(Index) const override { return std::nullopt; }
  std::string content_hash() const override { return "hash of " + std::to_string(info_.layers.size()) + " layers"; }

 private:
  DumpInfo info_;
  std::vector<LayerTensors> layers_;
};

SweepOptions options_of(const std::vector<std::string>& policies) {
  SweepOptions options;
  for (const std::string& policy : policies) options.policies.push_back(parse_policy(policy));
  options.budgets = {parse_budget("12"), parse_budget("50%")};
  return options;
}

void check_equal(const DumpResult& found, const DumpResult& expected) {
  CHECK(found.content_hash == expected.content_hash);
  REQUIRE(found.policies.size() == expected.policies.size());
  for (std::size_t p = 0; p < found.policies.size(); ++p) {
    for (std::size_t b = 0; b < found.policies[p].cells.size(); ++b) {
      const Cell &a = found.policies[p].cells[b], &e = expected.policies[p].cells[b];
      CAPTURE(p);
      CAPTURE(b);
      CHECK(a.counts == e.counts);
      CHECK(a.tied == e.tied);
      CHECK(a.identical_to == e.identical_to);
      CHECK(a.model.relative_error == e.model.relative_error);
      for (std::size_t layer = 0; layer < a.layers.size(); ++layer) {
        CHECK(a.layers[layer].relative_error == e.layers[layer].relative_error);
        CHECK(a.layers[layer].head_relative_error == e.layers[layer].head_relative_error);
      }
    }
  }
}

}  // namespace

TEST_CASE("the best of all lists are the same however ranks hold them") {
  std::mt19937 random(3);
  std::vector<std::vector<double>> scores(7);
  for (auto& list : scores) {
    for (int n = 0; n < 60; ++n) list.push_back(static_cast<double>(random() % 40) - 10);  // many ties, some below 0
    std::sort(list.rbegin(), list.rend());
  }
  for (const Index k : {0, 1, 100, 257, 420}) {
    std::vector<ScoreList> all;
    for (const auto& list : scores) all.push_back({list, 3});
    const std::vector<Index> expected = top_k_counts(all, k);
    CHECK(std::accumulate(expected.begin(), expected.end(), Index{0}) == k);
    for (const Index count : {2, 3, 9}) {
      ThreadRanks(count).run([&](Ranks& ranks) {
        std::vector<ScoreList> mine;
        for (std::size_t i = 0; i < scores.size(); ++i) {
          const bool here = static_cast<Index>(i) % ranks.size() == ranks.rank();
          mine.push_back({here ? std::span<const double>(scores[i]) : std::span<const double>(), 3});
        }
        CHECK(top_k_counts(mine, k, ranks) == expected);
      });
    }
  }
}

TEST_CASE("layers are dealt out evenly, and those that read one cache together") {
  DumpInfo dump = RandomDump({2, 2, 2, 2, 2, 2, 2, 2}, 1).info();
  const std::vector<Index> even = share_layers({&dump}, 4)[0];
  for (Index rank = 0; rank < 4; ++rank) CHECK(std::count(even.begin(), even.end(), rank) == 2);
  dump.layers[5].kv_source = 1;
  dump.layers[7].kv_source = 1;
  const std::vector<Index> shared = share_layers({&dump}, 4)[0];
  CHECK(shared[5] == shared[1]);
  CHECK(shared[7] == shared[1]);
  CHECK(std::count(shared.begin(), shared.end(), shared[1]) == 3);
}

TEST_CASE("ranks work on as many dumps at a time as give each of them several layers") {
  const DumpInfo one = RandomDump({1}, 1).info(), many = RandomDump({1, 1, 1, 1, 1, 1, 1, 1, 1}, 1).info();
  CHECK(group_dumps({&one, &one, &many}, 1) == std::vector<std::size_t>{1, 1, 1});
  CHECK(group_dumps({&many, &many, &many}, 2) == std::vector<std::size_t>{1, 1, 1});
  CHECK(group_dumps({&one, &one, &many, &one, &one}, 2) == std::vector<std::size_t>{3, 2});
}

TEST_CASE("a sweep of two dumps is the same on any number of ranks") {
  const RandomDump first({2, 1, 3, 2}, 11), second({2}, 21);
  const auto backend = make_cpu_backend(1);
  SweepOptions options =
      options_of({"recent", "streaming:sinks=4", "h2o", "snapkv+global:window=4", "snapkv+lava:window=4",
                  "cake:window=4", "laprox-r:window=4", "snapkv+ada:window=4", "oracle", "full"});
  const DumpResult expected[] = {sweep_dump(first, options, *backend), sweep_dump(second, options, *backend)};
  for (const Index count : {1, 2, 3, 6}) {
    CAPTURE(count);
    const auto endings = ThreadRanks(count).run([&](Ranks& ranks) {
      const auto found = sweep_dumps({&first, &second}, options, *backend, ranks);
      CHECK(found.size() == (ranks.is_first() ? 2 : 0));
      for (std::size_t d = 0; d < found.size(); ++d) check_equal(found[d], expected[d]);
    });
    for (const auto& ending : endings) CHECK(!ending);
  }
}

TEST_CASE("all ranks learn which one failed first, wherever the others are") {
  for (const Index culprit : {0, 2}) {
    const auto endings = ThreadRanks(4).run([&](Ranks& ranks) {
      ranks.all_gather("together");
      if (ranks.rank() == culprit || ranks.rank() == 3) throw Error("this rank cannot go on");
      CHECK_THROWS_AS(ranks.gather("the others"), RankFailed);
      throw Error("nor can this one, which is not the first");
    });
    for (const auto& ending : endings) {
      REQUIRE(ending);
      CHECK(ending->rank == culprit);
      CHECK(ending->status == 1 + static_cast<int>(culprit));
    }
  }
}

}  // namespace laprox
