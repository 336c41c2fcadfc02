// The worked examples of the published policies on a hashed fixture of two layers (support/layers.h). The numbers were
// computed once from the original repositories' own code (StreamingLLM, H2O, SnapKV, AdaKV) or, for LaProx, whose code
// was not published, from its formulas by an independent program; none comes from this project.

#include <doctest/doctest.h>

#include <string>

#include "support/golden.h"

namespace laprox::testing {

TEST_CASE("StreamingLLM keeps sinks and recent tokens") {
  check_kept("streaming:sinks=1", {{0, 3, 4, 5}, {0, 3, 4, 5}});
}

TEST_CASE("H2O sums the attention of all queries") {
  for (const auto& backend : backends()) {
    CAPTURE(backend->name());
    const Matrix scores = score("h2o", 0, *backend);
    check_row(scores, 0, {2.2444, 0.8488, 1.9393, 0.1643, 0.6774, 0.1257});
    check_row(scores, 1, {2.2104, 1.5124, 0.9274, 1.1066, 0.1687, 0.0744});
  }
  check_kept("h2o", {{0, 2, 4, 5}, {0, 1, 4, 5}});
  check_kept("h2o:recent=2", {{0, 2, 4, 5}, {0, 1, 4, 5}});
}

TEST_CASE("SnapKV pools the window's attention") {
  for (const auto& backend : backends()) {
    CAPTURE(backend->name());
    const Matrix raw = score("snapkv:window=2,pool=none", 0, *backend);
    check_row(raw, 0, {0.1009, 0.1254, 0.2951, 0.0770});
    check_row(raw, 1, {0.1714, 0.0513, 0.2853, 0.3705});
    const Matrix average = score("snapkv:window=2,kernel=3,pool=avg", 0, *backend);
    check_row(average, 0, {0.0754, 0.1738, 0.1658, 0.1240});
    check_row(average, 1, {0.0742, 0.1693, 0.2357, 0.2186});
    const Matrix maximum = score("snapkv:window=2,kernel=3", 0, *backend);
    check_row(maximum, 0, {0.1254, 0.2951, 0.2951, 0.2951});
    check_row(maximum, 1, {0.1714, 0.2853, 0.3705, 0.3705});
    check_row(score("snapkv:window=2,kernel=3,order=pool-first", 0, *backend), 1, {0.1714, 0.2853, 0.4569, 0.4569});
  }
  check_kept("snapkv:window=2,kernel=3,pool=avg", {{1, 2, 4, 5}, {2, 3, 4, 5}});
  // Tokens 1, 2 and 3 of head 0 tie for two places: the lower ones win.
  check_kept("snapkv:window=2,kernel=3", {{1, 2, 4, 5}, {2, 3, 4, 5}});
}

TEST_CASE("AdaKV gives heads what they win, and the layer exactly its total") {
  // The layer's best four entries are one of head 0 and three of head 1. The official rounding keeps 1 + 2 of the 4
  // slots; the largest remainders of 0.8 and 2.4 fill them: 1 + 3.
  for (const auto& backend : backends()) {
    const auto layers = fixture(*backend);
    const std::string scorer = "snapkv+ada:window=2,kernel=3,pool=avg,";
    CHECK(keep(parse_policy(scorer + "floor=0.2"), layers, {4}, *backend).counts[0][0] == std::vector<Index>{3, 5});
    CHECK(keep(parse_policy(scorer + "floor=0"), layers, {4}, *backend).counts[0][0] == std::vector<Index>{3, 5});
    CHECK(keep(parse_policy(scorer + "floor=0.5"), layers, {4}, *backend).counts[0][0] == std::vector<Index>{4, 4});
    CHECK(keep(parse_policy(scorer + "floor=1"), layers, {4}, *backend).counts[0][0] == std::vector<Index>{4, 4});
  }
}

TEST_CASE("LaProx scores under every reading of the group") {
  struct Row {
    const char* options;
    std::vector<double> head0, head1;
    Tokens kept0, kept1;
  };
  const Row rows[] = {
      {"gqa=mean-product,pool-stage=attn", {.7067, .3385, .4702, .9273}, {.3460, .9348, 2.0666, .8929}, {0, 3}, {1, 2}},
      {"gqa=mean-product,pool-stage=final",
       {.3825, .5937, .4747, .4000},
       {.3427, 1.3288, 1.5326, 1.4466},
       {1, 2},
       {2, 3}},
      {"gqa=mean-norms,pool-stage=attn", {.8503, .3845, .3884, .9412}, {.3308, .9206, 2.1020, .8995}, {0, 3}, {1, 2}},
      {"gqa=mean-attn,pool-stage=attn", {.8328, .3604, .3606, .8580}, {.3192, .9068, 2.0834, .8947}, {0, 3}, {1, 2}},
      {"gqa=mean-attn,pool-stage=final", {.4673, .6634, .4926, .3938}, {.3268, 1.2556, 1.4753, 1.3982}, {1, 2}, {2, 3}},
      {"gqa=frobenius,pool-stage=final",
       {.7392, 1.1040, .8441, .7043},
       {.5227, 2.2590, 2.4706, 2.3299},
       {1, 2},
       {2, 3}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.options);
    const std::string policy = std::string("laprox+head:window=2,kernel=3,") + row.options;
    for (const auto& backend : backends()) {
      CAPTURE(backend->name());
      const Matrix scores = score(policy, 0, *backend);
      check_row(scores, 0, row.head0);
      check_row(scores, 1, row.head1);
    }
    const auto with_window = [](Tokens kept) {
      kept.insert(kept.end(), {4, 5});
      return kept;
    };
    check_kept(policy, {with_window(row.kept0), with_window(row.kept1)});
  }
  for (const auto& backend : backends()) {
    const Matrix scores = score("laprox:window=2,kernel=3", 1, *backend);
    check_row(scores, 0, {.3681, 1.5320, .9270, .4279});
    check_row(scores, 1, {.6234, .6793, .1268, 1.1167});
  }
}

TEST_CASE("LaProx spends a budget over a layer or over the model") {
  check_kept("laprox+layer:window=2,kernel=3", {{3, 4, 5}, {1, 2, 3, 4, 5}});
  check_kept("laprox:window=2,kernel=3", {{3, 4, 5}, {1, 2, 3, 4, 5}, {1, 2, 4, 5}, {1, 3, 4, 5}});
  check_kept("laprox+global:window=2,kernel=3,normalize=false",
             {{0, 3, 4, 5}, {1, 2, 3, 4, 5}, {1, 2, 4, 5}, {3, 4, 5}});
}

}  // namespace laprox::testing
