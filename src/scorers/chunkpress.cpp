#include <algorithm>
#include <cmath>
#include <limits>

#include "base/parallel.h"
#include "scorers/chunk_shares.h"
#include "scorers/key_directions.h"
#include "scorers/snapkv_scorer.h"

namespace laprox {

namespace {

/// ChunkPress: every chunk of the context is compressed by itself, as if there were no other.
class ChunkPress : public Scorer {
 public:
  explicit ChunkPress(const Options& options)
      : Scorer(traits_of(options)),
        base_(options.text("base")),
        chunk_(options.integer("chunk")),
        window_(options.integer("window")),
        kernel_(options.integer("kernel")),
        pool_(pool_of(options)),
        group_(group_of(options)) {
    check_kernel(kernel_, "chunkpress");
  }

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    Matrix scores(layer.geometry().kv_heads, layer.context_length());
    parallel_for(kernels.threads(), scores.rows(), [&](Index head) {
      const Matrix keys = layer.keys(head);
      std::vector<Matrix> queries;
      for (Index h = 0; base_ == "snapkv" && h < layer.geometry().group(); ++h) {
        queries.push_back(layer.queries_of(head * layer.geometry().group() + h));
      }
      for (Index first = 0; first < keys.rows(); first += chunk_) {
        const Index size = std::min(chunk_, keys.rows() - first);
        scores.row(head).segment(first, size) =
            base_ == "snapkv" ? snapkv(layer, head, queries, keys, first, size) : by_keys(keys.middleRows(first, size));
      }
    });
    return ChunkShares(chunk_).places(scores);
  }

  Index spends(Index tokens, Index, const Ranking& ranking) const override {
    return ChunkShares(chunk_).spends(tokens, static_cast<Index>(ranking.size()));
  }

  double flops(const LayerGeometry& g, Index context, Index) const override {
    const Index rows = base_ == "snapkv" ? g.query_heads * std::min(window_, chunk_) : g.kv_heads;
    return 2.0 * static_cast<double>(rows * g.head_size) * static_cast<double>(context);
  }

 private:
  static ScorerTraits traits_of(const Options& options) {
    const bool reads_queries = options.text("base") == "snapkv";
    return {.queries = {.kind = reads_queries ? QueryNeed::Kind::all : QueryNeed::Kind::none},
            .spends_exactly = options.text("quota") == "exact",
            .scores_are_places = true};
  }

  Eigen::RowVectorXd by_keys(const Matrix& keys) const {
    if (base_ == "knorm") return -keys.rowwise().norm().transpose();
    return dissimilarity(keys);
  }

  /// SnapKV on the chunk alone; its last `window` tokens come before all others of it.
  Eigen::RowVectorXd snapkv(const LayerView& layer, Index kv_head, const std::vector<Matrix>& queries,
                            const Matrix& keys, Index first, Index size) const {
    const Index prefix = size - std::min(window_, size);
    Matrix received(static_cast<Index>(queries.size()), prefix);
    for (Index h = 0; h < received.rows(); ++h) {
      const Index head = kv_head * layer.geometry().group() + h;
      received.row(h) = window_mean(layer, head, queries[h], keys, first, size);
    }
    Matrix scores = reduce_groups(received, received.rows(), group_);
    pool_prefix(scores, prefix, pool_, kernel_);
    Eigen::RowVectorXd padded = Eigen::RowVectorXd::Constant(size, std::numeric_limits<double>::infinity());
    padded.head(prefix) = scores.row(0);
    return padded;
  }

  /// The mean over the chunk's last queries of the attention that they pay to the tokens before them, over the keys of
  /// the chunk that they see.
  Eigen::RowVectorXd window_mean(const LayerView& layer, Index head, const Matrix& queries, const Matrix& keys,
                                 Index first, Index size) const {
    const Index window = std::min(window_, size), prefix = size - window;
    const AttentionForm& form = layer.attention();
    Eigen::RowVectorXd sums = Eigen::RowVectorXd::Zero(prefix);
    for (Index token = first + prefix; token < first + size; ++token) {
      const Index seen = std::max(first, form.first_visible(token)), count = token + 1 - seen;
      Eigen::ArrayXd logits = form.scale * (keys.middleRows(seen, count) * queries.row(token).transpose()).array();
      if (form.softcap > 0) logits = form.softcap * (logits / form.softcap).tanh();
      const bool sink = !form.sinks.empty();
      const double learned = sink ? form.sinks[head] : 0;
      const double most = sink ? std::max(logits.maxCoeff(), learned) : logits.maxCoeff();
      const Eigen::ArrayXd weights = (logits - most).exp();
      const double whole = weights.sum() + (sink ? std::exp(learned - most) : 0);
      const Index before = std::max<Index>(0, first + prefix - seen);  // of the seen tokens, those that compete
      sums.tail(before) += (weights.head(before) / whole).matrix().transpose();
    }
    return sums / static_cast<double>(window);
  }

  std::string base_;
  Index chunk_, window_, kernel_;
  Pool pool_;
  GroupReduction group_;
};

}  // namespace

ScorerInfo chunkpress_info() {
  std::vector<OptionSpec> options{
      OptionSpec::choice("base", "snapkv", {"snapkv", "knorm", "keydiff"}, "the score that is formed in every chunk"),
      OptionSpec::integer("chunk", 1024, 1, 1 << 20, "tokens per chunk"), ChunkShares::quota_option(),
      OptionSpec::integer("window", 32, 1, 1 << 20, "of base=snapkv: last queries of a chunk that vote")};
  for (OptionSpec& option : pooling_options("max", 7)) options.push_back(std::move(option));
  options.push_back(group_option("mean"));
  return {
      .name = "chunkpress",
      .summary = "every chunk of the context compressed by itself: its own score, its own share of the budget",
      .paper = "kvpress ChunkPress, 2025, after FINCH, 2024, TACL, doi 10.1162/tacl_a_00716",
      .description =
          "The context is cut into chunks, and the base scorer sees nothing but the chunk: base=snapkv takes the "
          "chunk's last queries and the attention that they pay inside the chunk, base=keydiff the mean direction of "
          "the chunk's keys. Each chunk of n tokens keeps its own best int(n * b / C), at least one, in which a "
          "window's tokens come first; what rounding leaves is spent chunk by chunk, and with quota=kvpress it is not "
          "spent. kvpress rotates the queries of every chunk's window to the positions of the prompt's last tokens, "
          "a slip where there is more than one chunk; here they stay at their own.",
      .default_allocator = "head",
      .needs = "K; with base=snapkv all prompt queries, K",
      .only_allocator = "head",
      .options = std::move(options),
      .make = make_scorer<ChunkPress>,
  };
}

}  // namespace laprox
