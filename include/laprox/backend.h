#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "laprox/budget.h"
#include "laprox/layer.h"
#include "laprox/primitives.h"
#include "laprox/ranking.h"

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
};

/// float64, one thread, plain equations: the oracle of the others.
std::unique_ptr<Backend> make_reference_backend();
/// float32 with float64 sums, all cores: the fast path. threads = 0: as many as the machine has.
std::unique_ptr<Backend> make_cpu_backend(int threads = 0);

}  // namespace laprox
