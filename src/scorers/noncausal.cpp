#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "laprox/scorer.h"
#include "scorers/groups.h"
#include "scorers/pooling.h"

namespace laprox {

namespace {

/// NonCausalAttention: what a token receives where every query of its chunk sees every key of it.
class NonCausal : public Scorer {
 public:
  explicit NonCausal(const Options& options)
      : Scorer({.queries = {.kind = QueryNeed::Kind::all}, .below_zero = true}), chunk_(options.integer("chunk")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    const LayerGeometry& g = layer.geometry();
    Matrix received(g.query_heads, layer.context_length());
    parallel_for(kernels.threads(), g.query_heads, [&](Index head) {
      const Matrix queries = layer.queries_of(head), keys = layer.keys(head / g.group());
      for (Index first = 0; first < keys.rows(); first += chunk_) {
        const Index size = std::min(chunk_, keys.rows() - first);
        received.row(head).segment(first, size) =
            column_sums(queries.middleRows(first, size) * keys.middleRows(first, size).transpose());
      }
    });
    Matrix scores = reduce_groups(received, g.group(), GroupReduction::mean);
    for (Index head = 0; head < g.kv_heads; ++head) {
      scores.row(head).array() *= layer.values(head).rowwise().norm().transpose().array();
    }
    pool_prefix(scores, scores.cols(), Pool::average, 3);
    return standardised(scores);
  }

  double flops(const LayerGeometry& g, Index context, Index) const override {
    return 2.0 * static_cast<double>(g.query_heads * g.head_size) * static_cast<double>(context) *
           static_cast<double>(std::min(chunk_, context));
  }

 private:
  /// Of the softmax of one chunk's logits. A short chunk is padded: padded keys have the logit -1e-9 and take their
  /// share, and the logits of each padded query are 0 at the others.
  Eigen::RowVectorXd column_sums(const Matrix& logits) const {
    const auto padding = static_cast<double>(chunk_ - logits.rows());
    const double each = padding / (static_cast<double>(logits.cols()) + padding * std::exp(-1e-9));
    Eigen::RowVectorXd sums = Eigen::RowVectorXd::Constant(logits.cols(), each);
    for (Index row = 0; row < logits.rows(); ++row) {
      const double real = logits.row(row).maxCoeff(), most = padding > 0 ? std::max(real, -1e-9) : real;
      const Eigen::RowVectorXd weights = (logits.row(row).array() - most).exp();
      // A chunk without padding has no such term, though the exponential may be infinite where all logits are negative.
      const double of_padding = padding > 0 ? padding * std::exp(-1e-9 - most) : 0;
      sums += weights / (weights.sum() + of_padding);
    }
    return sums;
  }

  /// Less the layer's mean, over its standard deviation.
  static Matrix standardised(const Matrix& scores) {
    const Eigen::ArrayXXd centred = scores.array() - scores.mean();
    const double degrees = static_cast<double>(std::max<Index>(1, scores.size() - 1));
    return centred / std::max(std::sqrt(centred.square().sum() / degrees), 1e-6);
  }

  Index chunk_;
};

}  // namespace

ScorerInfo noncausal_info() {
  return {
      .name = "noncausal",
      .summary = "attention inside chunks without the causal mask, times the value norm",
      .paper = "Compactor, 2025, arXiv 2507.08143; kvpress NonCausalAttnPress",
      .description =
          "The context is cut into chunks; a[i] = sum over all queries t of i's chunk of the softmax over the chunk's "
          "keys of <q_t, k_i>, without 1 / sqrt(d) and without a mask. s = a, meaned over the group, times ||v_i||_2, "
          "avg-pooled over 3 tokens, less the layer's mean and over its standard deviation. As published, a last chunk "
          "that is short is padded: padded keys have the logit -1e-9 (not minus infinity), and padded queries add "
          "about (padded tokens) / chunk to each a. Nothing is protected. This is the half of Compactor that needs no random "
          "sketch.",
      .default_allocator = "head",
      .needs = "all prompt queries, K, V",
      .options = {OptionSpec::integer("chunk", 256, 1, 1 << 20, "tokens per chunk")},
      .make = make_scorer<NonCausal>,
  };
}

}  // namespace laprox
