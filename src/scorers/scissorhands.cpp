#include "laprox/scorer.h"
#include "scorers/groups.h"

namespace laprox {

namespace {

/// Scissorhands as KVCache-Factory selects: attention summed over a history of queries, sinks and recent tokens kept.
class Scissorhands : public Scorer {
 public:
  explicit Scissorhands(const Options& options) : Scorer(traits_of(options)), group_(group_of(options)) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const bool whole = traits().queries.kind == QueryNeed::Kind::all;
    const Matrix& sums = whole ? kernels.column_sums() : kernels.window_statistics(traits().queries.window).sum;
    return reduce_groups(sums, layer.geometry().group(), group_);
  }

 private:
  static ScorerTraits traits_of(const Options& options) {
    const Index history = options.integer("history");
    return {.queries = {.kind = history > 0 ? QueryNeed::Kind::window : QueryNeed::Kind::all, .window = history},
            .pins = {.first = options.integer("sinks"), .last = options.integer("recent")}};
  }

  GroupReduction group_;
};

}  // namespace

ScorerInfo scissorhands_info() {
  return {
      .name = "scissorhands",
      .summary = "attention summed over a history of queries, with sinks and recent tokens kept",
      .paper = "Scissorhands, 2023, arXiv 2305.17118, in KVCache-Factory's form",
      .description =
          "s[i] = sum over the last `history` prompt queries of A_h[t, i] (0: over all of them), meaned over the group; "
          "the first `sinks` and the last `recent` tokens are kept. KVCache-Factory leaves the sizes of both zones to "
          "the caller and scores query heads one by one. Its decay acts between steps of decoding, of which a prompt "
          "has none, and its random draws (selection=prob) are not replayed.",
      .default_allocator = "head",
      .needs = "all prompt queries, or a window of them, and K",
      .options = {OptionSpec::integer("history", 0, 0, 1 << 20, "last prompt queries that are summed over; 0: all"),
                  OptionSpec::integer("sinks", 4, 0, 1 << 20, "first tokens that are always kept"),
                  OptionSpec::integer("recent", 32, 0, 1 << 20, "last tokens that are always kept"),
                  group_option("mean")},
      .make = make_scorer<Scissorhands>,
  };
}

}  // namespace laprox
