#pragma once

#include <map>
#include <memory>
#include <optional>

#include "laprox/error.h"
#include "replay/selection.h"
#include "verify/assess.h"
#include "verify/plain.h"

namespace laprox::verify {

/// One layer as the float64 reference sees it, and as plain evaluations in any precision do.
class Yardsticks {
 public:
  /// `layer` is in float64. `judged`: its queries are the judging ones, for oracles. threads: of the plain programs.
  Yardsticks(const Backend& reference, LayerTensors layer, bool judged, int threads)
      : layer_(std::move(layer)), judged_(judged), threads_(threads), kernels_(reference.scoring(layer_)) {}

  Index layer() const { return layer_.layer; }
  const LayerTensors& tensors() const { return layer_; }

  /// compute(view, kernels) on the reference's numbers.
  template <class Compute>
  auto expected(const Compute& compute) {
    return compute(view(layer_), *kernels_);
  }

  /// The same in every plain program; nothing where that leaves the range of its numbers.
  template <class Compute>
  auto plain(const Precision& precision, const Compute& compute) {
    using Result = decltype(compute(std::declval<LayerView>(), std::declval<ScoringKernels&>()));
    const auto [entry, is_new] = plain_.try_emplace(precision.type());
    if (is_new) entry->second = std::make_unique<Plain>(layer_, precision, threads_);
    std::vector<std::optional<Result>> results;
    for (const auto& kernels : entry->second->kernels) {
      try {
        results.emplace_back(compute(view(entry->second->layer), *kernels));
      } catch (const BackendError&) {
        results.emplace_back();
      }
    }
    return results;
  }

  void assess(const Matrix& found, const Primitive& primitive, const Precision& precision, ValueCheck& check) {
    const Matrix expected = this->expected(primitive.compute);
    const auto plain = this->plain(precision, primitive.compute);
    Values values{.found = found, .expected = expected, .plain = {}, .rows_per_head = primitive.rows_per_head};
    values.weight_error = weight_error(primitive.needs, precision);
    for (const auto& each : plain) {
      if (each) values.plain.push_back(&*each);
    }
    assess_values(values, precision, layer(), check);
  }

  /// See weight_error.h; 0 for what reads no queries.
  double weight_error(QueryNeed::Kind needs, const Precision& precision);

  /// A policy's scores, the plain ones rounded as a program would store them.
  LayerScores expected_scores(const Policy& policy, const std::vector<Index>& budgets);
  std::vector<std::optional<LayerScores>> plain_scores(const Policy& policy, const std::vector<Index>& budgets,
                                                       const Precision& precision);

 private:
  struct Plain {
    Plain(const LayerTensors& exact, const Precision& precision, int threads) : layer(round_layer(exact, precision)) {
      for (const Program& program : kPrograms) {
        kernels.push_back(make_plain_scoring(layer, precision, program, threads));
      }
    }
    LayerTensors layer;
    std::vector<std::unique_ptr<ScoringKernels>> kernels;  ///< by program
  };
  LayerView view(const LayerTensors& layer) const { return judged_ ? LayerView::of_judged(layer) : LayerView(layer); }

  LayerTensors layer_;
  bool judged_;
  int threads_;
  std::unique_ptr<ScoringKernels> kernels_;
  std::map<ElementType, std::unique_ptr<Plain>> plain_;
  std::map<ElementType, double> weight_errors_;
};

/// Why some scores are not assessed.
inline constexpr const char* kPlaces = "its scores only say an order; its kept tokens are assessed";

/// Assesses a policy's scores of one order; nothing reads those of pinned tokens.
void assess_scores(const Matrix& found, const LayerScores& expected,
                   const std::vector<std::optional<LayerScores>>& plain, std::size_t order, const Policy& policy,
                   const Precision& precision, double weight_error, Index layer, ValueCheck& check);

/// Whether a plain evaluation's scores are beyond the cap: of scores that jump, that it jumps at other tokens. True
/// where no plain evaluation stays in range: nothing says at which tokens the precision makes them jump.
bool jumps_elsewhere(const LayerScores& expected, const std::vector<std::optional<LayerScores>>& plain,
                     std::size_t order);
/// Why such scores are not assessed.
inline constexpr const char* kJumps =
    "its scores jump where attention crosses a threshold, which a plain evaluation crosses at other tokens here; its "
    "kept tokens are assessed";

/// Assesses the exact output of the layer's queries, [queries, D]. threads: of the plain programs.
void assess_output(const Backend& reference, const LayerTensors& layer, const Matrix& found, const Precision& precision,
                   int threads, ValueCheck& check);

}  // namespace laprox::verify
