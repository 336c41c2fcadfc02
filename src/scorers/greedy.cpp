#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "laprox/scorer.h"

namespace laprox {

namespace {

constexpr Index kLongestContext = 4096;
/// A query whose visible keys are all gone has the output 0; this floor keeps the quotients on the way there finite.
constexpr double kLeastMass = 1e-300;

/// One layer from which entries are taken away one after the other. N judging queries, G heads to a group.
class Elimination {
 public:
  Elimination(const LayerView& layer, ScoringKernels& kernels)
      : layer_(layer), geometry_(layer.geometry()), threads_(kernels.threads()), heads_(heads()), left_(kv_heads()) {
    for (Index g = 0; g < geometry_.kv_heads; ++g) {
      values_.push_back(layer.values(g));
      for (Index i = 0; i < layer.context_length(); ++i) left_[g].push_back(i);
    }
    kernels.visit_heads(layer.queries(), [&](Index h, const HeadAttention& attention) {
      Head& head = heads_[h];
      head.weights = attention.weights;
      head.exact = attention.outputs;
      head.rest_output = attention.later_weights * layer.later_values(h / geometry_.group());
      head.rest_mass = attention.later_weights.rowwise().sum().array() + attention.sink_weights;
      head.output_block = layer.output_block(h);
    });
    for (Index g = 0; g < geometry_.kv_heads; ++g) {
      groups_.push_back(make_group(g));
      refresh(g);
    }
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
    std::vector<Entry> entries = costs();
    const auto middle = entries.begin() + count;
    std::partial_sort(entries.begin(), middle, entries.end());
    std::vector<bool> touched(left_.size());
    for (auto entry = entries.begin(); entry != middle; ++entry) {
      auto& tokens = left_[entry->head];
      tokens.erase(std::lower_bound(tokens.begin(), tokens.end(), entry->token));
      touched[entry->head] = true;
      gone(entry->head, entry->token);
    }
    for (std::size_t g = 0; g < touched.size(); ++g) {
      if (touched[g]) refresh(static_cast<Index>(g));
    }
  }

 private:
  struct Head {
    Matrix weights;             ///< [N, C] exact attention
    Matrix exact, rest_output;  ///< [N, d_v] exact output; its part that is never evicted, unnormalised
    Eigen::ArrayXd rest_mass;   ///< [N] weight that is never evicted: tokens behind the context and the head's sink
    Matrix output_block;        ///< [d_v, D]
    Matrix kept;                ///< [N, |left|] weights of the kept entries
    Matrix output;              ///< [N, d_v] today's output
    Eigen::ArrayXd mass;        ///< [N] weight that is still there
    /// [N] where in `left` the entry stands that has more than half of the query's weight today, -1: none has; and how
    /// the output would move without it. Formed from the other entries: 1 - p and o - v would have no digits left.
    std::vector<Index> dominant;
    Matrix move_without;  ///< [N, d_v]
  };
  /// Two heads a <= b of one group.
  struct Pair {
    Index a, b;
    Matrix gram;                               ///< [d_v, d_v] W_a W_b^T
    Eigen::RowVectorXd squares, left_squares;  ///< v_i gram v_i of all tokens, and of those that are left
  };
  struct Group {
    std::vector<Pair> pairs;
    Matrix left_values;  ///< [|left|, d_v]
  };
  struct Entry {
    double cost;
    Index head, token;
    bool operator<(const Entry& other) const {
      if (cost != other.cost) return cost < other.cost;
      return head != other.head ? head > other.head : token > other.token;
    }
  };

  std::vector<Head> heads() const { return std::vector<Head>(static_cast<std::size_t>(geometry_.query_heads)); }
  std::vector<std::vector<Index>> kv_heads() const {
    return std::vector<std::vector<Index>>(static_cast<std::size_t>(geometry_.kv_heads));
  }

  Group make_group(Index g) const {
    Group group;
    const Matrix& values = values_[g];
    const auto block = [&](Index a) -> const Matrix& {
      return heads_[static_cast<std::size_t>(g * geometry_.group() + a)].output_block;
    };
    for (Index a = 0; a < geometry_.group(); ++a) {
      for (Index b = a; b < geometry_.group(); ++b) {
        Pair& pair = group.pairs.emplace_back(Pair{a, b, block(a) * block(b).transpose(), {}, {}});
        pair.squares = (values * pair.gram).cwiseProduct(values).rowwise().sum().transpose();
      }
    }
    return group;
  }

  /// Recomputes a group's outputs from what is left, so that no rounding piles up.
  void refresh(Index g) {
    const auto& tokens = left_[g];
    Group& group = groups_[g];
    const Matrix& values = group.left_values = values_[g](tokens, Eigen::all);
    for (Pair& pair : group.pairs) pair.left_squares = pair.squares(tokens);
    for (Index h = g * geometry_.group(); h < (g + 1) * geometry_.group(); ++h) {
      Head& head = heads_[h];
      head.kept = head.weights(Eigen::all, tokens);
      head.mass = head.rest_mass + head.kept.rowwise().sum().array();
      const Eigen::ArrayXd scale = (head.mass > kLeastMass).select(1 / head.mass.max(kLeastMass), 0.0);
      head.output = scale.matrix().asDiagonal() * (head.rest_output + head.kept * values);
      find_dominant(head, values);
    }
  }

  static void find_dominant(Head& head, const Matrix& values) {
    head.dominant.assign(static_cast<std::size_t>(head.kept.rows()), -1);
    head.move_without.resize(head.output.rows(), head.output.cols());
    for (Index t = 0; t < head.kept.rows() && head.kept.cols() > 0; ++t) {
      Index at = 0;
      if (!(head.kept.row(t).maxCoeff(&at) > head.mass[t] / 2)) continue;
      Eigen::RowVectorXd others = head.kept.row(t);
      others[at] = 0;
      const double mass = head.rest_mass[t] + others.sum();
      head.dominant[static_cast<std::size_t>(t)] = at;
      head.move_without.row(t) = -head.output.row(t);
      if (mass > kLeastMass) head.move_without.row(t) += (head.rest_output.row(t) + others * values) / mass;
    }
  }

  /// What the layer's squared output error would grow by, for every kept entry.
  std::vector<Entry> costs() const {
    Matrix error = Matrix::Zero(heads_[0].output.rows(), geometry_.model_size);
    for (const Head& head : heads_) error += (head.output - head.exact) * head.output_block;
    std::vector<std::vector<Entry>> found(left_.size());
    parallel_for(threads_, geometry_.kv_heads, [&](Index g) {
      const Eigen::VectorXd cost = group_costs(g, error);
      const auto& tokens = left_[g];
      for (std::size_t n = 0; n < tokens.size(); ++n) {
        found[g].push_back({cost[static_cast<Index>(n)], g, tokens[n]});
      }
    });
    std::vector<Entry> all;
    for (const auto& part : found) all.insert(all.end(), part.begin(), part.end());
    return all;
  }

  /// Without entry i a head's output moves by c (o - v_i), c = p / (1 - p) and p the entry's weight today. With E the
  /// layer's error so far, the squared error grows by 2 <E, sum_a c_a (o_a - v_i) W_a> + ||sum_a c_a (o_a - v_i)
  /// W_a||^2, summed over queries. With M_ab = W_a W_b^T all that is products of v_i with E W_a^T and o_a M_ab, which
  /// are stacked into one, and v_i M_ab v_i, which never changes.
  Eigen::VectorXd group_costs(Index g, const Matrix& error) const {
    const Group& group = groups_[g];
    const Index queries = error.rows(), size = geometry_.group();
    Matrix stack(queries * (size + static_cast<Index>(group.pairs.size())), geometry_.value_size);
    Matrix constants(queries, stack.rows() / queries);
    std::vector<Matrix> pulls;
    Index block = 0;
    const auto add = [&](const Matrix& factor, const Eigen::VectorXd& constant) {
      stack.middleRows(block * queries, queries) = factor;
      constants.col(block++) = constant;
    };
    for (Index a = 0; a < size; ++a) {
      const Head& head = heads_[g * size + a];
      const Matrix& pull = pulls.emplace_back(2 * error * head.output_block.transpose());
      add(-pull, pull.cwiseProduct(head.output).rowwise().sum());
    }
    for (const Pair& pair : group.pairs) {
      const Matrix& first = heads_[g * size + pair.a].output;
      const Matrix& second = heads_[g * size + pair.b].output;
      const Matrix moved = first * pair.gram;
      add(-moved - second * pair.gram.transpose(), moved.cwiseProduct(second).rowwise().sum());
    }
    const Matrix products = stack * group.left_values.transpose();
    Eigen::RowVectorXd cost = Eigen::RowVectorXd::Zero(group.left_values.rows());
    Matrix moves(size, cost.size());
    std::vector<std::pair<Index, double>> exact;  // costs of dominant entries
    for (Index t = 0; t < queries; ++t) {
      exact.clear();
      for (Index a = 0; a < size; ++a) {
        const Index at = heads_[g * size + a].dominant[static_cast<std::size_t>(t)];
        if (at >= 0) exact.emplace_back(at, cost[at] + cost_without(g, pulls, t, at));
      }
      for (Index a = 0; a < size; ++a) {
        const Head& head = heads_[g * size + a];
        const auto kept = head.kept.row(t).array();
        moves.row(a) = kept / (head.mass[t] - kept).max(kLeastMass);
        cost.array() += moves.row(a).array() * (products.row(a * queries + t).array() + constants(t, a));
      }
      for (std::size_t n = 0; n < group.pairs.size(); ++n) {
        const Pair& pair = group.pairs[n];
        const Index at = size + static_cast<Index>(n);
        cost.array() += (pair.a == pair.b ? 1 : 2) * moves.row(pair.a).array() * moves.row(pair.b).array() *
                        (products.row(at * queries + t).array() + constants(t, at) + pair.left_squares.array());
      }
      for (const auto& [at, with_it] : exact) cost[at] = with_it;
    }
    return cost.transpose();
  }

  /// The same at one query for one entry, the `at`-th that is left, which has most of the query's weight in some head.
  double cost_without(Index g, const std::vector<Matrix>& pulls, Index t, Index at) const {
    const Group& group = groups_[g];
    const Index size = geometry_.group();
    Matrix moves(size, geometry_.value_size);
    double cost = 0;
    for (Index a = 0; a < size; ++a) {
      const Head& head = heads_[g * size + a];
      const double kept = head.kept(t, at);
      if (head.dominant[static_cast<std::size_t>(t)] == at) {
        moves.row(a) = head.move_without.row(t);
      } else {
        moves.row(a) =
            kept / std::max(head.mass[t] - kept, kLeastMass) * (head.output.row(t) - group.left_values.row(at));
      }
      cost += pulls[static_cast<std::size_t>(a)].row(t).dot(moves.row(a));
    }
    for (const Pair& pair : group.pairs) {
      cost += (pair.a == pair.b ? 1 : 2) * (moves.row(pair.a) * pair.gram).dot(moves.row(pair.b));
    }
    return cost;
  }

  LayerView layer_;
  LayerGeometry geometry_;
  int threads_;
  std::vector<Head> heads_;               ///< [query_head]
  std::vector<Matrix> values_;            ///< [kv_head] [C, d_v]
  std::vector<std::vector<Index>> left_;  ///< [kv_head] kept tokens, ascending
  std::vector<Group> groups_;             ///< [kv_head]
};

/// Backward elimination by the layer's true output error.
class Greedy : public Scorer {
 public:
  explicit Greedy(const Options& options)
      : Scorer({.queries = {.kind = QueryNeed::Kind::judged},
                .scores_are_places = true,
                .longest_context = kLongestContext}),
        step_(options.real("step")) {}

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
      .summary =
          "backward elimination by the layer's true output error: what a fixed order could do, though the oracle's can do better",
      .paper = "",
      .description =
          "Starting from the whole context, the entry of the layer whose loss would raise ||O_kept - O||_F^2 least, "
          "with renormalisation and all cross terms, goes first; the order in which they go serves every budget. It "
          "reads the judging queries, so no cache can deploy it. step is the share of what is left that goes between "
          "two evaluations of all costs, at least one entry; step=0 is one at a time, slower and far better where "
          "little is evicted. Contexts up to 4096 tokens; 'laprox inspect' and --show-plan print the work.",
      .default_allocator = "layer",
      .needs = "judging queries, K, V, W_o",
      .only_allocator = "layer",
      .options = {OptionSpec::real("step", 0.01, 0, 0.5, "share of the entries left that goes at a time")},
      .make = make_scorer<Greedy>,
  };
}

}  // namespace laprox
