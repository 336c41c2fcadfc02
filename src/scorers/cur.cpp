#include <algorithm>

#include "laprox/scorer.h"

namespace laprox {

namespace {

/// CurDKV: squared norms of key and value stand in for leverage scores.
class Cur : public Scorer {
 public:
  explicit Cur(const Options& options)
      : Scorer({.pins = {.first = options.integer("sinks")}}),
        block_(options.integer("block")),
        kind_(options.text("leverage")) {}

  Matrix score(const LayerView& layer, ScoringKernels&) const override {
    Matrix scores(layer.geometry().kv_heads, layer.context_length());
    for (Index head = 0; head < scores.rows(); ++head) {
      const Eigen::VectorXd keys = within_blocks(layer.keys(head).rowwise().squaredNorm());
      const Eigen::VectorXd values = within_blocks(layer.values(head).rowwise().squaredNorm());
      Eigen::VectorXd both = keys;
      if (kind_ == "product") both = keys.cwiseProduct(values);
      if (kind_ == "average") both = (keys + values) / 2;
      if (kind_ == "value") both = values;
      const double sum = both.sum();
      scores.row(head) = sum > 0 ? Eigen::VectorXd(both / sum).transpose() : both.transpose();
    }
    return scores;
  }

 private:
  /// Each block of consecutive tokens divided by its sum; an all-zero block stays zero.
  Eigen::VectorXd within_blocks(Eigen::VectorXd squares) const {
    for (Index first = 0; first < squares.size(); first += block_) {
      auto block = squares.segment(first, std::min(block_, squares.size() - first));
      const double sum = block.sum();
      if (sum > 0) block /= sum;
    }
    return squares;
  }

  Index block_;
  std::string kind_;
};

}  // namespace

ScorerInfo cur_info() {
  return {
      .name = "cur",
      .summary = "squared key and value norms, as shares of their block; reads no query",
      .paper = "CurDKV, 2025, arXiv 2509.15038",
      .description =
          "||k_i||^2 and ||v_i||^2, each divided by its sum over the token's block of 16, multiplied, and divided by "
          "the head's total; the first tokens are kept. The code replaces the paper's leverage scores by these norms. "
          "leverage=key, value or average read one of them or both. The code's random projection is not offered.",
      .default_allocator = "head",
      .needs = "K, V",
      .options = {OptionSpec::choice("leverage", "product", {"product", "key", "value", "average"}, "what is scored"),
                  OptionSpec::integer("block", 16, 1, 1 << 20, "tokens that are normalised together"),
                  OptionSpec::integer("sinks", 4, 0, 1 << 20, "first tokens that are always kept")},
      .make = make_scorer<Cur>,
  };
}

}  // namespace laprox
