// Worked examples of the policies that kvpress 0.5.5 and KVCache-Factory c97f9d7 publish as code alone, on the same
// fixture. Their own code computed the numbers.

#include <doctest/doctest.h>

#include "replay/selection.h"
#include "support/golden.h"

namespace laprox::testing {

namespace {

/// What both heads of a layer keep whose queries were rotated by RoPE.
void check_rotated(const std::string& policy_text, Index layer_index, Index budget,
                   const std::vector<Tokens>& expected) {
  for (const auto& backend : backends()) {
    CAPTURE(policy_text);
    CAPTURE(budget);
    CAPTURE(backend->name());
    const Policy policy = parse_policy(policy_text);
    const LayerTensors layer = rotated_fixture_layer(layer_index, backend->element_type());
    Selector selector(policy, {Budget(budget, 2)}, backend->threads());
    selector.add_layer(LayerView(layer), *backend->scoring(layer));
    const Kept kept{selector.finish()};
    for (std::size_t head : {0U, 1U}) CHECK(kept.tokens(0, 0, head) == expected[head]);
  }
}

}  // namespace

TEST_CASE("FINCH weighs each query of the window by the tokens that it sees, and can give chunks their share") {
  for (const auto& backend : backends()) {
    CAPTURE(backend->name());
    const Matrix counted = score("finch:window=2", 0, *backend);
    check_row(counted, 0, {.4122, .6182, 1.2854, .3717});
    check_row(counted, 1, {.8058, .2329, 1.1671, 1.7513});
    check_row(score("finch:window=2,count=none", 0, *backend), 0, {.1009, .1254, .2951, .0770});
  }
  check_kept("finch:window=2", {{1, 2, 4, 5}, {2, 3, 4, 5}, {2, 3, 4, 5}, {2, 3, 4, 5}});
  check_kept("finch:window=1,chunk=3,quota=kvpress", {{1, 2, 4, 5}, {0, 1, 3, 5}, {0, 2, 3, 5}, {1, 2, 3, 5}});
  check_kept("finch:window=1,chunk=4,quota=kvpress", {{1, 2, 5}, {0, 3, 5}, {2, 3, 5}, {2, 3, 5}}, 3);
}

TEST_CASE("Scissorhands sums a history of queries between sinks and recent tokens") {
  for (const auto& backend : backends()) {
    CAPTURE(backend->name());
    const Matrix two = score("scissorhands:history=2,sinks=1,recent=1", 0, *backend);
    check_row(two, 0, {.2019, .2507, .5902, .1541, .6774, .1257});
    check_row(two, 1, {.3428, .1025, .5706, .7410, .1687, .0744});
  }
  check_kept("scissorhands:sinks=1,recent=1", {{0, 1, 2, 5}, {0, 1, 3, 5}, {0, 1, 2, 5}, {0, 1, 2, 5}});
  check_kept("scissorhands:history=2,sinks=1,recent=1", {{0, 2, 4, 5}, {0, 2, 3, 5}, {0, 2, 3, 5}, {0, 2, 3, 5}});
  check_kept("scissorhands:history=3,sinks=0,recent=2", {{0, 2, 4, 5}, {2, 3, 4, 5}, {2, 3, 4, 5}, {1, 3, 4, 5}});
}

TEST_CASE("NonCausalAttention attends both ways inside chunks, of which the last may be padded") {
  for (const auto& backend : backends()) {
    CAPTURE(backend->name());
    const Matrix padded = score("noncausal:chunk=4", 0, *backend);
    check_row(padded, 0, {-2.2112, .6183, .3508, 1.7656, .5312, -.1178});
    check_row(padded, 1, {-.8784, .2059, .6084, -.2318, .2912, -.9322});
    check_row(score("noncausal:chunk=6", 0, *backend), 1, {-1.0560, .3211, .9728, 1.0336, .1542, -1.3263});
    check_row(score("noncausal:chunk=3", 1, *backend), 0, {-.9472, .4482, .1241, 1.3484, .9196, .5429});
  }
  check_kept("noncausal:chunk=4", {{1, 2, 3, 4}, {1, 2, 3, 4}, {1, 2, 3, 4}, {2, 3, 4, 5}});
  check_kept("noncausal:chunk=3", {{1, 3, 4, 5}, {1, 2, 3, 4}, {1, 3, 4, 5}, {1, 2, 3, 4}});
}

TEST_CASE("EntropyGatedChunkKV cuts important chunks whose score sits in few tokens") {
  const std::string policy = "entropy-chunkkv:window=2,kernel=3,pool=avg,";
  const auto same = [](const Tokens& tokens) { return std::vector<Tokens>(4, tokens); };
  check_kept(policy + "chunk=2,spiky=1", same({2, 3, 4, 5}));
  check_kept(policy + "chunk=2,spiky=1", same({2, 4, 5}), 3);
  check_kept(policy + "chunk=4,spiky=1", same({1, 2, 4, 5}));
  check_kept(policy + "chunk=4,spiky=2", same({2, 4, 5}), 3);
  // Tokens 3, 4 and 5 are one chunk, which keeps all of them, before any of the chunk that has token 2.
  check_kept(policy + "chunk=3,spiky=1", same({3, 4, 5}), 3);
}

TEST_CASE("ChunkPress scores and keeps chunk by chunk") {
  const std::string published = "chunkpress:quota=kvpress,";
  check_kept(published + "base=knorm,chunk=4", {{0, 3, 5}, {0, 1, 5}, {0, 1, 4}, {0, 1, 5}});
  check_kept(published + "base=keydiff,chunk=3", {{0, 2, 4, 5}, {0, 1, 3, 4}, {1, 2, 3, 4}, {1, 2, 3, 5}});
  check_kept(published + "base=snapkv,window=1,kernel=3,pool=avg,chunk=3", std::vector<Tokens>(4, {0, 2, 3, 5}));
  check_kept(published + "base=snapkv,window=1,kernel=3,pool=avg,chunk=4", std::vector<Tokens>(4, {1, 3, 5}));
  // The token that rounding leaves goes to the first chunk, whose third would be at 3/4 of it: its keys' norms.
  check_kept("chunkpress:base=knorm,chunk=4", {{0, 2, 3, 5}, {0, 1, 2, 5}});
}

TEST_CASE("CriticalKV and CriticalAdaKV over ExpectedAttention") {
  const std::string guess = "future=4,sinks=1";
  const std::string plain = "critical-expected-attention:variant=kvpress-0.5.5," + guess;
  check_rotated(plain, 0, 1, {{0}, {0}});
  check_rotated(plain, 0, 2, {{0, 3}, {0, 2}});
  check_rotated(plain, 0, 4, {{0, 2, 3, 4}, {0, 2, 4, 5}});
  check_rotated(plain, 1, 4, {{0, 1, 4, 5}, {0, 1, 2, 3}});
  check_rotated(plain, 1, 5, {{0, 1, 2, 4, 5}, {0, 1, 2, 3, 4}});
  const std::string ada = "criticalada-expected-attention:" + guess;
  check_rotated(ada, 0, 2, {{0, 3, 4}, {0}});
  check_rotated(ada, 0, 4, {{0, 3, 4}, {0, 1, 2, 4, 5}});
  check_rotated(ada, 1, 4, {{0, 1, 4, 5}, {0, 1, 2, 3}});
  check_rotated(ada, 1, 5, {{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3}});
}

TEST_CASE("PyramidKV in kvpress computes with the budget as it was asked for") {
  Contest contest;
  contest.context_length = 100;
  contest.pinned = 4;
  contest.scores.assign(4, {std::vector<double>(96, 1.0)});
  const auto counts = [&](const Budget& budget) {
    std::vector<Index> found;
    const Policy policy = parse_policy("snapkv+pyramid:variant=kvpress,window=4,beta=5");
    for (const auto& layer : policy.allocator->allocate(contest, budget)) found.push_back(layer[0]);
    return found;
  };
  CHECK(counts(Budget(33, 4, 33.3)) == std::vector<Index>{60, 42, 24, 7});
  CHECK(counts(Budget(33, 4)) == std::vector<Index>{59, 42, 24, 7});
}

TEST_CASE("shares per layer") {
  Contest contest;
  contest.context_length = 50;
  contest.pinned = 4;
  contest.scores.assign(3, {std::vector<double>(46, 1.0), std::vector<double>(46, 1.0)});
  const auto counts = [&](const std::string& options, const Budget& budget) {
    std::vector<Index> found;
    const Policy policy = parse_policy("snapkv+per-layer:window=4," + options);
    for (const auto& layer : policy.allocator->allocate(contest, budget)) found.push_back(layer[0]);
    return found;
  };
  // kvpress: int(50 * (1 - r)) with r = 0.25, 0.61, 0.9; the budget is their mean.
  CHECK(counts("shares=0.75/0.39/0.1,variant=kvpress", Budget(20, 6, 50 * 1.24 / 3)) == std::vector<Index>{37, 19, 5});
  CHECK(counts("shares=0.75/0.39/0.1", Budget(20, 6)) == std::vector<Index>{36, 19, 5});
  CHECK(counts("shares=1", Budget(20, 6)) == std::vector<Index>{20, 20, 20});
  // Neither more than there is nor less than what is pinned; the others make up for it.
  CHECK(counts("shares=10/1/1", Budget(30, 6)) == std::vector<Index>{50, 20, 20});
  CHECK(counts("shares=1/1/0", Budget(12, 6)) == std::vector<Index>{16, 16, 4});
}

}  // namespace laprox::testing
