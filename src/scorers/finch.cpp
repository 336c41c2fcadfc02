#include "laprox/scorer.h"
#include "scorers/groups.h"

namespace laprox {

namespace {

/// FINCH: the attention of the last queries, each row in proportion to the number of tokens that it is spread over.
class Finch : public Scorer {
 public:
  explicit Finch(const Options& options)
      : Scorer({.queries = {.kind = QueryNeed::Kind::window, .window = options.integer("window")},
                .pins = {.last = options.integer("window")}}),
        normalize_(options.text("normalize")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const LayerGeometry& g = layer.geometry();
    Matrix attention = Matrix::Zero(g.query_heads, layer.context_length());
    kernels.visit_heads(traits().queries.window, [&](Index head, const HeadAttention& seen) {
      const Index rows = seen.weights.rows();
      for (Index row = 0; row < rows; ++row) {
        const Index position = layer.context_length() - rows + row;
        attention.row(head) += weight(position) / static_cast<double>(rows) * seen.weights.row(row);
      }
    });
    return reduce_groups(attention, g.group(), GroupReduction::mean);
  }

 private:
  double weight(Index position) const {
    if (normalize_ == "none") return 1;
    return static_cast<double>(normalize_ == "exact" ? position + 1 : position);
  }

  std::string normalize_;
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
          "the query at position t sees; normalize=exact takes t + 1, and none 1. The kept set alone is replayed: "
          "kvpress also moves the kept keys to new positions (rerotate_keys), and can give every piece of the context "
          "a quota (chunk_length).",
      .default_allocator = "head",
      .needs = "window queries, K",
      .options = {OptionSpec::integer("window", 32, 1, 1 << 20, "last prompt queries that vote, the question; kept"),
                  OptionSpec::choice("normalize", "kvpress", {"kvpress", "exact", "none"},
                                     "what a query's row is multiplied by")},
      .make = make_scorer<Finch>,
  };
}

}  // namespace laprox
