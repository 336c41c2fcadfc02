#include <algorithm>

#include "laprox/scorer.h"
#include "scorers/pooling.h"

namespace laprox {

namespace {

/// Queries that a far energy is averaged over at least, so that the last candidates' few do not decide.
constexpr Index kFewestQueries = 16;

/// LaProx-R: how far the removal of an entry moves the layer's output, its softmax renormalised.
class LaProxR : public Scorer {
 public:
  explicit LaProxR(const Options& options)
      : Scorer(traits_of(options)),
        kernel_(options.integer("kernel")),
        pool_(pool_of(options)),
        over_(options.text("over") == "sum" ? OverQueries::sum : OverQueries::maximum),
        joint_(options.boolean("joint")),
        own_(options.real("own")),
        far_weight_(options.real("far-weight")) {
    check_kernel(kernel_, "laprox-r");
  }

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const Index context = layer.context_length(), end = std::max<Index>(0, context - traits().pins.last);
    Matrix energies = kernels.removal_energies(traits().queries.window, over_, joint_);
    if (traits().far_distance > 0)
      add_far(energies, kernels.far_energies(traits().far_distance, traits().queries.of_all));
    Matrix pooled = energies;
    pool_between(pooled, std::min(traits().pins.first, end), end, pool_, kernel_);
    if (own_ > 0) pooled += own_ * energies;
    return pooled.cwiseSqrt();
  }

 private:
  static ScorerTraits traits_of(const Options& options) {
    const Index far = options.integer("far");
    return {.queries = {.kind = far > 0 ? QueryNeed::Kind::all : QueryNeed::Kind::window,
                        .window = options.integer("window"),
                        .of_all = options.integer("far-queries")},
            .pins = {.first = options.integer("sinks"), .last = options.integer("pinned")},
            .far_distance = far};
  }

  void add_far(Matrix& energies, const Matrix& far) const {
    const Index read = traits().queries.of_all;
    for (Index i = 0; i < energies.cols(); ++i) {
      const Index distant = energies.cols() - traits().far_distance - i;
      const Index queries = std::max(read > 0 ? std::min(distant, read) : distant, kFewestQueries);
      energies.col(i) += far_weight_ / static_cast<double>(queries) * far.col(i);
    }
  }

  Index kernel_;
  Pool pool_;
  OverQueries over_;
  bool joint_;
  double own_, far_weight_;
};

std::unique_ptr<Scorer> make_laprox_r(Options& options) {
  if (!options.given("pinned")) options.settle("pinned", options.text("window"));
  return std::make_unique<LaProxR>(options);
}

}  // namespace

ScorerInfo laprox_r_info() {
  std::vector<OptionSpec> options{
      OptionSpec::integer("window", 32, 1, 1 << 20, "last prompt queries that vote"),
      OptionSpec::integer("pinned", 32, 0, 1 << 20, "last tokens that are always kept; unless given, the window"),
      OptionSpec::integer("sinks", 4, 0, 1 << 20, "first tokens that are always kept"),
      OptionSpec::choice("over", "max", {"max", "sum"}, "the window's queries: the largest energy, or their sum"),
      OptionSpec::boolean("joint", true, "one norm for all query heads that read the entry, or the sum of theirs")};
  for (OptionSpec& spec : pooling_options("max", 21)) options.push_back(std::move(spec));
  options.push_back(OptionSpec::real("own", 0, 0, 1e6, "weight of an entry's own energy beside the pooled one"));
  options.push_back(OptionSpec::integer("far", 0, 0, 1 << 20,
                                        "0: none; else adds what all prompt queries at this distance or more lose"));
  options.push_back(OptionSpec::integer("far-queries", 0, 0, 1 << 30, "of these, the last so many are read; 0: all"));
  options.push_back(OptionSpec::real("far-weight", 8, 0, 1e6, "weight of what distant queries lose"));
  return {
      .name = "laprox-r",
      .summary = "exact change of the layer's output when one entry is removed, relative to the residual stream",
      .paper = "LaProx-R, 2026, this project",
      .description =
          "Removing entry i of one KV head, the softmax renormalised, moves the layer's output at query t by Delta[t, "
          "i] = sum over the group of a / (1 - a) (o_h[t] - v_i) W_O^h, a = A_h[t, i] (at most 1 - 1e-6). s[i] = root "
          "of the pooled max over the window's queries of ||Delta[t, i]||^2 (over=sum: their sum; joint=false: without "
          "the products of different query heads). The first `sinks` and the last `pinned` tokens are kept, and "
          "pooling stays between them. far=n adds far-weight times the mean of ||Delta||^2 over all prompt queries t "
          ">= i + n (of fewer than 16 queries: a 16th of their sum), without products of different heads: what the "
          "window does not attend to and distant queries do; far-queries=m: over the last m prompt queries alone, so "
          "that the cost is linear in the prompt's length. own=c adds c times the entry's own energy to the pooled "
          "one. The allocator global:normalize=residual (the default) divides each layer's scores by the size of the "
          "residual stream that its output is added to.",
      .default_allocator = "global:normalize=residual",
      .needs = "window queries (with far: all prompt queries, or the last far-queries), K, V, W_o, residual norms",
      .options = std::move(options),
      .make = make_laprox_r,
  };
}

}  // namespace laprox
