#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "laprox/budget.h"
#include "laprox/layer.h"
#include "laprox/primitives.h"
#include "laprox/ranking.h"
#include "laprox/schedule.h"

namespace laprox {

/// How the kept entries' output is formed.
enum class SoftmaxMode {
  renormalized,  ///< softmax over the kept keys: what a deployed cache computes
  truncated      ///< the exact weights of the kept keys, not rescaled: the paper's matrix product
};

std::string_view to_string(SoftmaxMode mode);

/// One policy's kept sets on one layer: budget b keeps the first counts[b][kv_head] tokens of rankings[kv_head].
struct LayerKeep {
  std::span<const Ranking> rankings;       ///< [kv_head]
  std::vector<std::vector<Index>> counts;  ///< [budget][kv_head]
  /// [kv_head]: where not empty, the cache changes while decoding, and this alone says what each query finds in it;
  /// counts has one budget.
  std::span<const Lifetimes> lifetimes = {};
};

/// The start of a policy that sums attention while the model decodes (H2O), at one budget.
struct Accumulation {
  const Matrix& sums;  ///< [query_heads, C] what each entry received from the prompt's queries
  /// [kv_head]: the entries that the cut after the prompt left, ascending.
  const std::vector<std::vector<std::int32_t>>& held;
  Schedule schedule;
  /// Which of a KV head's entries a cut evicts, ascending, from their sums [group, entries] in the order of positions,
  /// once `seen` tokens have been processed.
  std::function<std::vector<std::int32_t>(const Matrix& sums, Index seen)> evict;
};

/// How far one kept set moves one layer's output, as sums over which metrics are formed. n: judged queries.
struct OutputError {
  std::vector<double> query_error;  ///< [n] ||delta_t||^2, delta = kept output - exact output, both after W_o
  /// [n] ||kept output||^2 and <kept output, exact_t>. They are summed over the kept output itself wherever forming
  /// them from delta and the exact output would lose digits, which is where little remains of a query's output.
  std::vector<double> kept_square, kept_product;
  std::vector<double> head_error;  ///< [query_heads] squared error of the head outputs, before W_o
  double retained_mass = 0;        ///< mean over query heads and queries of 1 - the evicted keys' exact weight
  double bound = 0;                ///< truncated mode: sum of evicted ||A_h[:, i]|| ||v_i W_O^h||, bounds ||delta||_F
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

  /// Whether it replays schedules: accumulate, and LayerKeep::lifetimes.
  virtual bool replays_decoding() const { return false; }

  /// Replays a policy that sums attention, query by query: at its step a decoded query attends to what the cache holds,
  /// itself included, the softmax renormalised over that, and adds its weights to their entries' sums. Then, at the
  /// schedule's steps, the cache is cut. `layer` holds every decoded query. Returns each KV head's lifetimes.
  virtual std::vector<Lifetimes> accumulate(const LayerTensors& layer, const Accumulation& start) const;
};

/// float64, one thread, plain equations: the oracle of the others.
std::unique_ptr<Backend> make_reference_backend();
/// float32 with float64 sums, all cores: the fast path. threads = 0: as many as the machine has.
std::unique_ptr<Backend> make_cpu_backend(int threads = 0);

}  // namespace laprox
