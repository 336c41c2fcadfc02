#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "laprox/budget.h"
#include "laprox/layer.h"
#include "laprox/ranking.h"

namespace laprox {

/// How the kept entries' output is formed.
enum class SoftmaxMode {
  renormalized,  ///< softmax over the kept keys: what a deployed cache computes
  truncated      ///< the exact weights of the kept keys, not rescaled: the paper's matrix product
};

std::string_view to_string(SoftmaxMode mode);

/// Column statistics of the observation window's attention, all [query_heads, C]. A_h[t, i] is the causal softmax of
/// the window's queries over the whole context, window columns included.
struct WindowStatistics {
  Matrix sum;      ///< sum_t A_h[t, i]
  Matrix squares;  ///< sum_t A_h[t, i]^2
};

/// What one query head sees from the window's queries.
struct HeadAttention {
  Matrix weights;  ///< [queries, C] A_h[t, i], 0 where the query does not see the token
  Matrix logits;   ///< [queries, C] what the softmax was taken of, 0 where the query does not see the token
  Matrix outputs;  ///< [queries, d_v] o_h[t], over all keys that the query sees
};
using HeadVisitor = std::function<void(Index query_head, const HeadAttention&)>;

/// How the energies that an entry's removal takes at the window's queries become one number.
enum class OverQueries { sum, maximum };

/// The scoring primitives on one layer. Results may be kept between calls, so that scorers share them.
class ScoringKernels {
 public:
  virtual ~ScoringKernels() = default;

  /// Statistics over the last min(window, C) stored queries.
  virtual const WindowStatistics& window_statistics(Index window) = 0;
  /// <A_h[:, i], A_h'[:, i]> over the same queries for all pairs of query heads of a group: [kv_heads * G * G, C],
  /// row (g * G + a) * G + b.
  virtual const Matrix& window_products(Index window) = 0;
  /// Column sums over all prompt queries, sum_{t >= i} A_h[t, i]: [query_heads, C].
  virtual const Matrix& column_sums() = 0;
  /// Calls visit once for every query head, in any order and from several threads at once, with the attention of the
  /// same queries row by row. For scores that column statistics do not carry; nothing is kept.
  virtual void visit_heads(Index window, const HeadVisitor& visit) = 0;
  /// How many threads work for these kernels, for scorers with work of their own.
  virtual int threads() const = 0;
  /// ||v_i W_O^h||_2: [query_heads, C].
  virtual const Matrix& value_norms() = 0;
  /// ||v_i W_O^h||_1: [query_heads, C].
  virtual const Matrix& value_l1_norms() = 0;
  /// <v_i W_O^h, v_i W_O^h'> for all pairs of query heads of a group: [kv_heads * G * G, C], rows as above.
  virtual const Matrix& value_products() = 0;
};

/// One policy's kept sets on one layer: budget b keeps the first counts[b][kv_head] tokens of rankings[kv_head].
struct LayerKeep {
  std::span<const Ranking> rankings;       ///< [kv_head]
  std::vector<std::vector<Index>> counts;  ///< [budget][kv_head]
};

/// How far one kept set moves one layer's output, as sums over which metrics are formed. n: judged queries.
struct OutputError {
  std::vector<double> query_error;    ///< [n] ||delta_t||^2, delta = kept output - exact output, both after W_o
  std::vector<double> query_product;  ///< [n] <delta_t, exact_t>
  std::vector<double> head_error;     ///< [query_heads] squared error of the head outputs, before W_o
  double retained_mass = 0;           ///< mean over query heads and queries of 1 - the evicted keys' exact weight
  double bound = 0;  ///< truncated mode: sum of evicted ||A_h[:, i]|| ||v_i W_O^h||, bounds ||delta||_F
};

/// The exact output of the judged queries and the norms that errors are relative to.
struct ExactOutput {
  Matrix output;                  ///< [n, D], bias included
  std::vector<double> head_norm;  ///< [query_heads] squared norm of the head outputs, before W_o
};

/// One layer judged: its exact output, and the error of every policy at every budget.
struct LayerErrors {
  ExactOutput exact;
  std::vector<std::vector<OutputError>> errors;  ///< [policy][budget]
};

/// A way to compute the primitives. Results do not depend on the number of threads.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual std::string device() const = 0;        ///< what it runs on, for the report
  virtual ElementType element_type() const = 0;  ///< in which it wants its tensors: float32 or float64
  /// Whether a layer whose tensors a dump stores all as float16, or all as bfloat16, may come to it as it is.
  virtual bool takes_half_types() const { return false; }
  virtual int threads() const = 0;  ///< how many CPU threads work for it

  /// `layer` must outlive the kernels; its q holds prompt queries only (see LayerView).
  virtual std::unique_ptr<ScoringKernels> scoring(const LayerTensors& layer) const = 0;

  /// Judges the kept sets of all policies by the queries that `layer` holds. Tokens at positions >= C are always kept.
  /// A query that sees no kept key, in a layer without sinks, gets the output 0.
  virtual LayerErrors layer_errors(const LayerTensors& layer, const std::vector<LayerKeep>& policies,
                                   SoftmaxMode mode) const = 0;
};

/// float64, one thread, plain equations: the oracle of the others.
std::unique_ptr<Backend> make_reference_backend();
/// float32 with float64 sums, all cores: the fast path. threads = 0: as many as the machine has.
std::unique_ptr<Backend> make_cpu_backend(int threads = 0);

}  // namespace laprox
