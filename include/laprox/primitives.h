#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "laprox/layer.h"

namespace laprox {

/// The queries that a scorer or a primitive reads.
struct QueryNeed {
  enum class Kind {
    none,
    window,  ///< the last `window` prompt queries
    all,     ///< all prompt queries, or the last `of_all` ones beside the window
    judged   ///< the very queries that judge: an oracle
  };
  Kind kind = Kind::none;
  Index window = 0;
  Index of_all = 0;  ///< 0: every one

  /// Whether it reads every prompt query.
  bool every() const { return kind == Kind::all && of_all == 0; }
  /// How many of the last prompt queries it reads, a window as it was asked for.
  Index counted(Index context) const {
    if (kind != Kind::all) return window;
    return every() ? context : std::min(std::max(of_all, window), context);
  }
};

/// Column statistics of the observation window's attention, all [query_heads, C]. A_h[t, i] is the causal softmax of
/// the window's queries over the whole context, window columns included.
struct WindowStatistics {
  Matrix sum;      ///< sum_t A_h[t, i]
  Matrix squares;  ///< sum_t A_h[t, i]^2
};

/// What one query head sees from the window's queries.
struct HeadAttention {
  Matrix weights;        ///< [queries, C] A_h[t, i], 0 where the query does not see the token
  Matrix logits;         ///< [queries, C] what the softmax was taken of, 0 where the query does not see the token
  Matrix outputs;        ///< [queries, d_v] o_h[t], over all keys that the query sees
  Matrix later_weights;  ///< [queries, T - C] of the tokens behind the context, which judging queries see
  Eigen::ArrayXd sink_weights;  ///< [queries] of the head's learned sink, 0 where it has none
};
using HeadVisitor = std::function<void(Index query_head, const HeadAttention&)>;

/// How the energies of a removal at the window's queries become one number.
enum class OverQueries { sum, maximum };

/// The scoring primitives on one layer. Each is computed by the backend when it is first asked for, and kept with its
/// parameters for as long as the kernels live, so that scorers share it.
class ScoringKernels {
 public:
  ScoringKernels() = default;
  ScoringKernels(const ScoringKernels&) = delete;
  ScoringKernels& operator=(const ScoringKernels&) = delete;
  virtual ~ScoringKernels() = default;

  /// Statistics over the last min(window, C) stored queries.
  const WindowStatistics& window_statistics(Index window);
  /// <A_h[:, i], A_h'[:, i]> over the same queries for all pairs of query heads of a group: [kv_heads * G * G, C],
  /// row (g * G + a) * G + b.
  const Matrix& window_products(Index window);
  /// Column sums over all prompt queries, sum_{t >= i} A_h[t, i]: [query_heads, C].
  const Matrix& column_sums();
  /// ||v_i W_O^h||_2: [query_heads, C].
  const Matrix& value_norms();
  /// ||v_i W_O^h||_1: [query_heads, C].
  const Matrix& value_l1_norms();
  /// <v_i W_O^h, v_i W_O^h'> for all pairs of query heads of a group: [kv_heads * G * G, C], rows as above.
  const Matrix& value_products();

  /// What the removal of one entry does to the layer's output: [kv_heads, C]. Without entry i, its softmax
  /// renormalised, query head h's term moves at query t by Delta_h[t, i] = c (o_h[t] - v_i) W_O^h, c = a / (1 - a), a =
  /// A_h[t, i], taken as at most 1 - 1e-6. The energy at t is ||sum_h Delta_h[t, i]||^2 over the heads of the group,
  /// or, unless `joint`, sum_h ||Delta_h[t, i]||^2. Over the last min(window, C) stored queries.
  const Matrix& removal_energies(Index window, OverQueries over, bool joint);
  /// sum over h of the group and the last `queries` prompt queries (0: all) with t >= i + distance of
  /// ||Delta_h[t, i]||^2: [kv_heads, C].
  const Matrix& far_energies(Index distance, Index queries = 0);
  /// Announces far_energies(distance) of all queries, so that a backend can compute it in one pass with column_sums.
  virtual void expect_far_energies(Index /*distance*/) {}

  /// Calls visit once for every query head, in any order and from several threads at once, with the attention of the
  /// same queries row by row. For scores that column statistics do not carry; nothing is kept.
  virtual void visit_heads(Index window, const HeadVisitor& visit) = 0;
  /// How many threads work for these kernels, for scorers with work of their own.
  virtual int threads() const = 0;

 protected:
  /// The primitives of the same names, shapes as above. Each is called once for the same parameters.
  virtual WindowStatistics compute_window_statistics(Index window) = 0;
  virtual Matrix compute_window_products(Index window) = 0;
  virtual Matrix compute_column_sums() = 0;
  virtual Matrix compute_value_norms() = 0;
  virtual Matrix compute_value_l1_norms() = 0;
  virtual Matrix compute_value_products() = 0;
  virtual Matrix compute_removal_energies(Index window, OverQueries over, bool joint) = 0;
  virtual Matrix compute_far_energies(Index distance, Index queries) = 0;

 private:
  /// A primitive's results by its parameters.
  template <class Result, class... Parameters>
  using Memo = std::map<std::tuple<Parameters...>, Result>;

  /// The memo's result for these parameters, computed where it is not there yet.
  template <class Result, class... Parameters>
  const Result& recall(Memo<Result, Parameters...>& memo, Result (ScoringKernels::*compute)(Parameters...),
                       std::type_identity_t<Parameters>... parameters) {
    const std::tuple<Parameters...> key(parameters...);
    const auto known = memo.find(key);
    return known != memo.end() ? known->second : memo.emplace(key, (this->*compute)(parameters...)).first->second;
  }

  Memo<WindowStatistics, Index> window_statistics_;
  Memo<Matrix, Index> window_products_;
  Memo<Matrix, Index, OverQueries, bool> removal_energies_;
  Memo<Matrix, Index, Index> far_energies_;
  Memo<Matrix> column_sums_, value_norms_, value_l1_norms_, value_products_;
};

/// A scoring primitive as a matrix, for whoever goes through all of them.
struct Primitive {
  std::string name;
  std::string row;          ///< what a row belongs to: a query "head", a "pair" of those of one group, a "KV head"
  QueryNeed::Kind needs;    ///< the queries that it reads
  Index rows_per_head = 1;  ///< rows that belong to the same head
  std::function<Matrix(const LayerView&, ScoringKernels&)> compute;
};

/// Every scoring primitive, those of a window over the last `window` stored queries. A visited primitive has one row
/// per head and query, head under head.
std::vector<Primitive> primitives(Index window);

/// The one of this name. Throws Bug where there is none.
Primitive find_primitive(const std::string& name, Index window);

}  // namespace laprox
