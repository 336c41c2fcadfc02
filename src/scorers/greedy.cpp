#include <algorithm>
#include <cmath>

#include "laprox/scorer.h"
#include "util/parallel.h"

namespace laprox {

namespace {

constexpr Index kLongestContext = 4096;
/// A query whose visible keys are all gone has the output 0; this floor keeps the quotients on the way there finite.
constexpr double kLeastMass = 1e-16;

/// One layer from which entries are taken away one after the other. N judging queries, G heads to a group.
class Elimination {
 public:
  Elimination(const LayerView& layer, ScoringKernels& kernels)
      : layer_(layer), geometry_(layer.geometry()), threads_(kernels.threads()), heads_(heads()), left_(kv_heads()) {
    for (Index g = 0; g < geometry_.kv_heads; ++g) {
      values_.push_back(layer.values(g));
      for (Index i = 0; i < layer.context_length(); ++i) left_[static_cast<std::size_t>(g)].push_back(i);
    }
    kernels.visit_heads(layer.queries(), [&](Index h, const HeadAttention& attention) {
      Head& head = heads_[static_cast<std::size_t>(h)];
      const Matrix& v = values_[static_cast<std::size_t>(h / geometry_.group())];
      head.weights = attention.weights;
      head.exact = attention.outputs;
      head.rest_output = attention.outputs - attention.weights * v;
      head.rest_mass = (1 - attention.weights.rowwise().sum().array()).max(0.0);
      head.output_block = layer.output_block(h);
    });
    for (Index g = 0; g < geometry_.kv_heads; ++g) refresh(g);
  }

  /// Entries that are still kept.
  Index size() const {
    Index count = 0;
    for (const auto& tokens : left_) count += static_cast<Index>(tokens.size());
    return count;
  }

  /// Takes away the `count` entries whose loss would cost least, one at a time by today's costs; calls gone(kv_head,
  /// token) for each. Ties: the later head and token go first.
  template <class Gone>
  void evict(Index count, const Gone& gone) {
    std::vector<Candidate> candidates = costs();
    const auto middle = candidates.begin() + count;
    std::partial_sort(candidates.begin(), middle, candidates.end());
    std::vector<bool> touched(left_.size());
    for (auto candidate = candidates.begin(); candidate != middle; ++candidate) {
      auto& tokens = left_[static_cast<std::size_t>(candidate->head)];
      tokens.erase(std::lower_bound(tokens.begin(), tokens.end(), candidate->token));
      touched[static_cast<std::size_t>(candidate->head)] = true;
      gone(candidate->head, candidate->token);
    }
    for (std::size_t g = 0; g < touched.size(); ++g) {
      if (touched[g]) refresh(static_cast<Index>(g));
    }
  }

 private:
  struct Head {
    Matrix weights;             ///< [N, C] exact attention
    Matrix exact, rest_output;  ///< [N, d_v] exact output; its part that is never evicted, unnormalised
    Eigen::ArrayXd rest_mass;   ///< [N] weight that is never evicted
    Matrix output_block;        ///< [d_v, D]
    Matrix kept;                ///< [N, |left|] weights of the kept entries
    Matrix output;              ///< [N, d_v] today's output
    Eigen::ArrayXd mass;        ///< [N] weight that is still there
  };
  struct Candidate {
    double cost;
    Index head, token;
    bool operator<(const Candidate& other) const {
      if (cost != other.cost) return cost < other.cost;
      return head != other.head ? head > other.head : token > other.token;
    }
  };

  std::vector<Head> heads() const { return std::vector<Head>(static_cast<std::size_t>(geometry_.query_heads)); }
  std::vector<std::vector<Index>> kv_heads() const {
    return std::vector<std::vector<Index>>(static_cast<std::size_t>(geometry_.kv_heads));
  }

  /// Recomputes a group's outputs from what is left, so that no rounding piles up.
  void refresh(Index g) {
    const auto& tokens = left_[static_cast<std::size_t>(g)];
    left_values_.resize(left_.size());
    Matrix& values = left_values_[static_cast<std::size_t>(g)];
    values = values_[static_cast<std::size_t>(g)](tokens, Eigen::all);
    for (Index h = g * geometry_.group(); h < (g + 1) * geometry_.group(); ++h) {
      Head& head = heads_[static_cast<std::size_t>(h)];
      head.kept = head.weights(Eigen::all, tokens);
      head.mass = head.rest_mass + head.kept.rowwise().sum().array();
      const Eigen::ArrayXd scale = (head.mass > kLeastMass).select(1 / head.mass.max(kLeastMass), 0.0);
      head.output = scale.matrix().asDiagonal() * (head.rest_output + head.kept * values);
    }
  }

  /// What the layer's squared output error would grow by, for every kept entry.
  std::vector<Candidate> costs() const {
    Matrix error = Matrix::Zero(heads_[0].output.rows(), geometry_.model_size);
    for (const Head& head : heads_) error += (head.output - head.exact) * head.output_block;
    std::vector<std::vector<Candidate>> found(left_.size());
    parallel_for(threads_, geometry_.kv_heads, [&](Index g) {
      const Eigen::VectorXd cost = group_costs(g, error);
      const auto& tokens = left_[static_cast<std::size_t>(g)];
      for (std::size_t n = 0; n < tokens.size(); ++n) {
        found[static_cast<std::size_t>(g)].push_back({cost[static_cast<Index>(n)], g, tokens[n]});
      }
    });
    std::vector<Candidate> all;
    for (const auto& part : found) all.insert(all.end(), part.begin(), part.end());
    return all;
  }

  /// Without entry i a head's output moves by c (o - v_i), c = p / (1 - p) and p the entry's weight today. With E the
  /// layer's error so far, the squared error grows by 2 <E, sum_a c_a (o_a - v_i) W_a> + ||sum_a c_a (o_a - v_i)
  /// W_a||^2, summed over queries: products of v_i with E W_a^T and o_a W_a W_b^T, and of v_i with itself.
  Eigen::VectorXd group_costs(Index g, const Matrix& error) const {
    const Matrix& values = left_values_[static_cast<std::size_t>(g)];
    const Index first = g * geometry_.group(), group = geometry_.group();
    std::vector<Eigen::ArrayXXd> moves;
    for (Index a = 0; a < group; ++a) {
      const Head& head = heads_[static_cast<std::size_t>(first + a)];
      const Eigen::ArrayXXd mass = head.mass.replicate(1, values.rows());
      moves.push_back(head.kept.array() / (mass - head.kept.array()).max(kLeastMass));
    }
    Eigen::ArrayXXd growth = Eigen::ArrayXXd::Zero(error.rows(), values.rows());
    for (Index a = 0; a < group; ++a) {
      const Head& head = heads_[static_cast<std::size_t>(first + a)];
      const Matrix pull = error * head.output_block.transpose();
      growth += 2 * moves[static_cast<std::size_t>(a)] * differences(pull, head.output, values);
      for (Index b = a; b < group; ++b) {
        const Head& other = heads_[static_cast<std::size_t>(first + b)];
        const Matrix gram = head.output_block * other.output_block.transpose();
        const Matrix projected = head.output * gram;
        const Eigen::RowVectorXd squares = (values * gram).cwiseProduct(values).rowwise().sum().transpose();
        Eigen::ArrayXXd product = differences(projected, other.output, values);
        product -= (other.output * gram.transpose() * values.transpose()).array();
        product.rowwise() += squares.array();
        growth += (a == b ? 1 : 2) * moves[static_cast<std::size_t>(a)] * moves[static_cast<std::size_t>(b)] * product;
      }
    }
    return growth.colwise().sum().matrix().transpose();
  }

  /// <x_t, o_t - v_i> for all queries t and entries i.
  static Eigen::ArrayXXd differences(const Matrix& x, const Matrix& output, const Matrix& values) {
    Eigen::ArrayXXd found = -(x * values.transpose()).array();
    found.colwise() += x.cwiseProduct(output).rowwise().sum().array();
    return found;
  }

  LayerView layer_;
  LayerGeometry geometry_;
  int threads_;
  std::vector<Head> heads_;               ///< [query_head]
  std::vector<Matrix> values_;            ///< [kv_head] [C, d_v]
  std::vector<std::vector<Index>> left_;  ///< [kv_head] kept tokens, ascending
  std::vector<Matrix> left_values_;       ///< [kv_head] their values
};

/// Backward elimination by the layer's true output error.
class Greedy : public Scorer {
 public:
  explicit Greedy(const Options& options) : step_(options.real("step")) {}

  QueryNeed queries() const override { return {.kind = QueryNeed::Kind::judged}; }
  Index longest_context() const override { return kLongestContext; }
  bool scores_are_places() const override { return true; }

  /// An entry's score is the number of entries that went before it.
  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override {
    Elimination elimination(layer, kernels);
    Matrix scores(layer.geometry().kv_heads, layer.context_length());
    double gone = 0;
    for (Index left = elimination.size(); left > 0; left = elimination.size()) {
      elimination.evict(step_size(left), [&](Index head, Index token) { scores(head, token) = gone++; });
    }
    return scores;
  }

  double flops(const LayerGeometry& g, Index context, Index queries) const override {
    double entries = static_cast<double>(g.kv_heads * context), rounds = 0;
    const double all = entries;
    for (Index left = g.kv_heads * context; left > 0; left -= step_size(left))
      rounds += static_cast<double>(left) / all;
    const double products = static_cast<double>(g.query_heads * queries * g.value_size) * static_cast<double>(context);
    return rounds * 2 * products * static_cast<double>(1 + g.group());
  }

 private:
  Index step_size(Index left) const {
    return std::max<Index>(1, static_cast<Index>(std::floor(static_cast<double>(left) * step_)));
  }

  double step_;
};

}  // namespace

ScorerInfo greedy_info() {
  return {
      .name = "greedy",
      .summary = "backward elimination by the layer's true output error: an upper limit for any fixed order",
      .paper = "",
      .description =
          "Starting from the whole context, the entry of the layer whose loss would raise ||O_kept - O||_F^2 least, "
          "with "
          "renormalisation and all cross terms, goes first; the order in which they go serves every budget. It reads "
          "the "
          "judging queries, so no cache can deploy it. step is the share of what is left that goes between two "
          "evaluations of all costs, at least one entry; step=0 is one at a time. Contexts up to 4096 tokens; "
          "'laprox inspect' and --show-plan print the work.",
      .default_allocator = "layer",
      .needs = "judging queries, K, V, W_o",
      .only_allocator = "layer",
      .options = {OptionSpec::real("step", 0.01, 0, 0.5, "share of the entries left that goes at a time")},
      .make = [](Options& options) -> std::unique_ptr<Scorer> { return std::make_unique<Greedy>(options); },
  };
}

}  // namespace laprox
