#include <cmath>

#include "laprox/scorer.h"

namespace laprox {

namespace {

/// LagKV: how much a token's channels spread, relative to the range of the tokens that come after it.
class LagKV : public Scorer {
 public:
  explicit LagKV(const Options& options)
      : Scorer({.scores_are_places = !options.boolean("cross-scoring")}),
        lag_(options.integer("lag")),
        sinks_(options.integer("sinks")),
        raw_(options.boolean("cross-scoring")) {}

  Matrix score(const LayerView& layer, ScoringKernels&) const override {
    const Index context = layer.context_length();
    Matrix scores = Matrix::Ones(layer.geometry().kv_heads, context);
    if (context < sinks_ + 2 * lag_) {  // too short for two partitions: the sinks and the most recent tokens
      const double rest = static_cast<double>(context - sinks_);
      for (Index i = sinks_; i < context; ++i) scores.col(i).setConstant(static_cast<double>(i - sinks_) / rest);
      return scores;
    }
    const Index partitions = (context - sinks_) / lag_;
    for (Index head = 0; head < scores.rows(); ++head) {
      const Matrix keys = layer.keys(head), values = layer.values(head);
      for (Index p = 0; p + 1 < partitions; ++p) {
        const Index first = sinks_ + p * lag_;
        scores.row(head).segment(first, lag_) =
            as_scores((spread(keys, first) + spread(values, first)) / 2).transpose();
      }
    }
    return scores;
  }

 private:
  /// Softmax over the partition's tokens of the standard deviation over channels, each channel measured in the range
  /// that it has in the next partition; a channel that is constant there counts as 0.
  Eigen::VectorXd spread(const Matrix& rows, Index first) const {
    const auto reference = rows.middleRows(first + lag_, lag_);
    const Eigen::RowVectorXd least = reference.colwise().minCoeff(), range = reference.colwise().maxCoeff() - least;
    Eigen::VectorXd deviation(lag_);
    for (Index i = 0; i < lag_; ++i) {
      const Eigen::RowVectorXd x =
          (range.array() > 0).select((rows.row(first + i) - least).array() / range.array(), 0.0);
      const double square = (x.array() - x.mean()).square().sum();
      deviation[i] = std::sqrt(square / static_cast<double>(std::max<Index>(1, x.size() - 1)));
    }
    const Eigen::VectorXd weights = (deviation.array() - deviation.maxCoeff()).exp();
    return weights / weights.sum();
  }

  /// The token's rank inside its partition, as a share of it, unless raw values are asked for.
  Eigen::VectorXd as_scores(const Eigen::VectorXd& values) const {
    if (raw_) return values;
    const Eigen::VectorXd negated = -values;
    const Ranking ascending = rank_by_score({negated.data(), static_cast<std::size_t>(lag_)}, {});
    Eigen::VectorXd ranks(lag_);
    for (Index n = 0; n < lag_; ++n) {
      ranks[ascending[n]] = static_cast<double>(n) / static_cast<double>(lag_);
    }
    return ranks;
  }

  Index lag_, sinks_;
  bool raw_;
};

}  // namespace

ScorerInfo lagkv_info() {
  return {
      .name = "lagkv",
      .summary = "spread of a token's channels relative to the tokens that follow; reads no query",
      .paper = "LagKV, 2025, arXiv 2504.04704",
      .description =
          "The context behind the sinks is cut into partitions of `lag` tokens. A token's channels are measured in "
          "the range that they have in the next partition; the standard deviation over channels, a softmax over the "
          "partition, the mean of the key's and the value's figure, and the rank inside the partition over lag make "
          "the score. Sinks, the last partition and what is left over score 1. Ranks repeat in every partition, so "
          "ties are the rule. A context below sinks + 2 lag keeps sinks and recent tokens.",
      .default_allocator = "head",
      .needs = "K, V",
      .options = {OptionSpec::integer("lag", 128, 1, 1 << 20, "tokens per partition"),
                  OptionSpec::integer("sinks", 4, 0, 1 << 20, "first tokens, which score 1"),
                  OptionSpec::boolean("cross-scoring", false, "compare raw values across partitions, not ranks")},
      .make = make_scorer<LagKV>,
  };
}

}  // namespace laprox
