#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>

#include "base/parallel.h"
#include "scorers/window_scorer.h"

namespace laprox {

namespace {

/// R-KV: attention of the last queries, less how much a key resembles the others.
class RKV : public WindowScorer {
 public:
  explicit RKV(const Options& options)
      : WindowScorer(options, "rkv", {.below_zero = true, .scores_jump = true}),
        lambda_(options.real("lambda")),
        threshold_(options.real("threshold")) {}

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    Matrix scores = lambda_ * importance(layer, kernels);
    for (Index head = 0; head < scores.rows(); ++head) {
      scores.row(head) -= (1 - lambda_) * redundancy(layer.keys(head), kernels.threads());
    }
    return scores;
  }

  /// The similarities of a block of keys; hardly a key needs a second one.
  double flops(const LayerGeometry& g, Index context, Index) const override {
    return 2.0 * static_cast<double>(g.kv_heads * g.head_size) * static_cast<double>(context) *
           static_cast<double>(std::min(context, kBlock));
  }

 private:
  static constexpr Index kBlock = 1024;

  /// Softmax over the tokens before the window of the largest logit in the group, mean over queries: [kv_heads, C].
  Matrix importance(const LayerView& layer, ScoringKernels& kernels) const {
    const Index prefix = prefix_of(layer), queries = layer.context_length() - prefix, heads = layer.geometry().kv_heads;
    std::vector<Matrix> logits(static_cast<std::size_t>(heads),
                               Matrix::Constant(queries, prefix, -std::numeric_limits<double>::infinity()));
    std::vector<std::mutex> busy(logits.size());
    kernels.visit_heads(window(), [&](Index head, const HeadAttention& attention) {
      const Index kv_head = head / layer.geometry().group();
      const std::lock_guard lock(busy[kv_head]);
      logits[kv_head] = logits[kv_head].cwiseMax(attention.logits.leftCols(prefix));
    });
    Matrix scores = Matrix::Zero(heads, layer.context_length());
    for (Index head = 0; head < heads; ++head) {
      for (Index t = 0; t < queries; ++t) {
        const Index first = layer.attention().first_visible(prefix + t);  // what it does not see counts as nothing
        if (first >= prefix) continue;
        const auto seen = logits[head].row(t).tail(prefix - first).array();
        const Eigen::RowVectorXd weights = (seen - seen.maxCoeff()).exp();
        scores.row(head).segment(first, prefix - first) += weights / (weights.sum() * static_cast<double>(queries));
      }
    }
    pool(scores, prefix);
    return scores;
  }

  /// Softmax over all tokens j of the mean over i of cos(k_i, k_j), where 0 stands for i = j and, in each row i, for
  /// the last token that is similar to i (the first token where none is): [C].
  Eigen::RowVectorXd redundancy(const Matrix& keys, int threads) const {
    const Matrix directions = keys.array().colwise() / (keys.rowwise().norm().array() + 1e-8);
    Eigen::VectorXd sums = directions * directions.colwise().sum().transpose() - directions.rowwise().squaredNorm();
    const std::vector<Index> spared = last_similar(directions, threads);
    for (Index i = 0; i < keys.rows(); ++i) {
      const Index j = spared[i];
      if (j != i) sums[j] -= directions.row(i).dot(directions.row(j));
    }
    sums /= static_cast<double>(keys.rows());
    const Eigen::RowVectorXd weights = (sums.array() - sums.maxCoeff()).exp().transpose();
    return weights / weights.sum();
  }

  /// For every key the last other one whose cosine with it is above the threshold, or 0: found from the end, a block
  /// of keys at a time.
  std::vector<Index> last_similar(const Matrix& directions, int threads) const {
    const Index tokens = directions.rows();
    std::vector<Index> last(static_cast<std::size_t>(tokens), 0);
    parallel_for(threads, (tokens + kBlock - 1) / kBlock, [&](Index block) {
      std::vector<Index> open(static_cast<std::size_t>(std::min(kBlock, tokens - block * kBlock)));
      std::iota(open.begin(), open.end(), block * kBlock);
      for (Index end = tokens; end > 0 && !open.empty(); end -= std::min(end, kBlock)) {
        const Index first = end - std::min(end, kBlock);
        const Matrix cosines = directions(open, Eigen::all) * directions.middleRows(first, end - first).transpose();
        std::vector<Index> still_open;
        for (std::size_t n = 0; n < open.size(); ++n) {
          Index j = end - 1;
          while (j >= first && (j == open[n] || !(cosines(static_cast<Index>(n), j - first) > threshold_))) --j;
          if (j >= first) {
            last[open[n]] = j;
          } else {
            still_open.push_back(open[n]);
          }
        }
        open = std::move(still_open);
      }
    });
    return last;
  }

  double lambda_, threshold_;
};

}  // namespace

ScorerInfo rkv_info() {
  std::vector<OptionSpec> options = WindowScorer::options(8, "max", 7);
  options.push_back(OptionSpec::real("lambda", 0.07, 0, 1, "weight of the attention; the rest is the redundancy's"));
  options.push_back(OptionSpec::real("threshold", 0.5, -1, 1, "cosine above which two keys are similar"));
  return {
      .name = "rkv",
      .summary = "attention of the last queries, less how much a key resembles the others",
      .paper = "R-KV, 2025, arXiv 2505.24133",
      .description =
          "s[i] = lambda I[i] - (1 - lambda) R[i], as in the published code. I: the largest logit of the group, softmax "
          "over the tokens before the window, mean over the window's queries, max-pooled. R: softmax over all tokens of "
          "the mean cosine between a key and the others, where each of these spares the last key that is similar to it, "
          "so that of a repetition the latest stays. Made for decoding: the code cuts with --schedule every:128. The "
          "paper has lambda = 0.1, the code 0.07.",
      .default_allocator = "head",
      .needs = "window queries, K",
      .options = std::move(options),
      .make = make_scorer<RKV>,
  };
}

}  // namespace laprox
