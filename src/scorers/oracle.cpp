#include "laprox/scorer.h"
#include "scorers/groups.h"

namespace laprox {

namespace {

/// LaProx's exact term norm, measured on the very queries that judge.
class Oracle : public Scorer {
 public:
  Oracle() : Scorer({.queries = {.kind = QueryNeed::Kind::judged}}) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const Index group = layer.geometry().group();
    const Matrix terms = kernels.window_products(layer.queries()).cwiseProduct(kernels.value_products());
    return reduce_groups(terms, group * group, GroupReduction::sum).cwiseMax(0.0).cwiseSqrt();
  }
};

}  // namespace

ScorerInfo oracle_info() {
  return {
      .name = "oracle",
      .summary = "norm of the entry's term in the outputs that judge: what a score of this form could do at best",
      .paper = "",
      .description =
          "s[i] = ||sum_h A_h[:, i] (x) v_i W_O^h||_F over the queries that judge, which no deployable policy sees; "
          "one top-K over the model, layers not normalised. It ranks entries one by one, so greedy, and now and then "
          "a policy that is lucky in its cross terms, can do better.",
      .default_allocator = "global:normalize=false",
      .needs = "judging queries, K, V, W_o",
      .options = {},
      .make = make_scorer<Oracle>,
  };
}

}  // namespace laprox
