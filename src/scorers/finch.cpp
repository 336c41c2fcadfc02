#include "laprox/scorer.h"
#include "scorers/chunk_shares.h"
#include "scorers/groups.h"

namespace laprox {

namespace {

/// FINCH: the attention of the last queries, each row in proportion to the number of tokens that it is spread over.
class Finch : public Scorer {
 public:
  explicit Finch(const Options& options)
      : Scorer(traits_of(options)),
        window_(options.integer("window")),
        chunk_(options.integer("chunk")),
        count_(options.text("count")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    Matrix scores = reduce_groups(attention(layer, kernels), layer.geometry().group(), GroupReduction::mean);
    if (chunk_ == 0) return scores;
    // The window is no exception to its chunk's share, but comes first in it.
    const Index kept = std::min(window_, layer.context_length()), prefix = layer.context_length() - kept;
    scores.rightCols(kept).setConstant(prefix > 0 ? scores.leftCols(prefix).maxCoeff() + 1 : 1);
    return ChunkShares(chunk_).places(scores);
  }

  Index spends(Index tokens, Index, const Ranking& ranking) const override {
    return ChunkShares(chunk_).spends(tokens, static_cast<Index>(ranking.size()));
  }

 private:
  static ScorerTraits traits_of(const Options& options) {
    const Index window = options.integer("window");
    const bool chunks = options.integer("chunk") > 0;
    return {.queries = {.kind = QueryNeed::Kind::window, .window = window},
            .pins = {.last = chunks ? 0 : window},
            .spends_exactly = !chunks || options.text("quota") == "exact",
            .scores_are_places = chunks};
  }

  /// [query_heads, C]
  Matrix attention(const LayerView& layer, ScoringKernels& kernels) const {
    Matrix attention = Matrix::Zero(layer.geometry().query_heads, layer.context_length());
    kernels.visit_heads(window_, [&](Index head, const HeadAttention& seen) {
      const Index rows = seen.weights.rows();
      for (Index row = 0; row < rows; ++row) {
        const Index position = layer.context_length() - rows + row;
        attention.row(head) += weight(position) / static_cast<double>(rows) * seen.weights.row(row);
      }
    });
    return attention;
  }
  double weight(Index position) const {
    if (count_ == "none") return 1;
    return static_cast<double>(count_ == "exact" ? position + 1 : position);
  }

  Index window_, chunk_;
  std::string count_;
};

}  // namespace

ScorerInfo finch_info() {
  return {
      .name = "finch",
      .summary = "the window's attention without pooling, each query weighted by the number of tokens that it sees",
      .paper = "FINCH, 2024, TACL, doi 10.1162/tacl_a_00716; kvpress FinchPress",
      .description =
          "s[i] = mean over the group and the window's queries t of n_t * A_h[t, i]; the window is kept. It stands for "
          "the question, so set `window` to the question's length. kvpress takes n_t = t, one less than the tokens that "
          "the query at position t sees; count=exact takes t + 1, and none 1. chunk=N gives each N tokens of the "
          "context their own share of the budget, int(N * b / C) and at least one, in which the window's tokens come "
          "first but are not certain; what rounding leaves is spent chunk by chunk, and with quota=kvpress it is "
          "not spent. The kept set alone is replayed: kvpress also moves the kept keys to new positions "
          "(rerotate_keys).",
      .default_allocator = "head",
      .needs = "window queries, K",
      .options = {OptionSpec::integer("window", 32, 1, 1 << 20, "last prompt queries that vote, the question; kept"),
                  OptionSpec::choice("count", "kvpress", {"kvpress", "exact", "none"},
                                     "what a query's row is multiplied by"),
                  OptionSpec::integer("chunk", 0, 0, 1 << 20, "tokens that share a part of the budget; 0: all"),
                  ChunkShares::quota_option()},
      .make = make_scorer<Finch>,
  };
}

}  // namespace laprox
