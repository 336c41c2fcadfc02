#pragma once

#include <map>
#include <memory>
#include <optional>

#include "laprox/error.h"
#include "planning.h"
#include "verify/judge.h"
#include "verify/plain.h"

namespace laprox::verify {

/// One layer as the float64 reference sees it, and as plain evaluations in any precision do.
class Yardsticks {
 public:
  /// `layer` is in float64. `judged`: its queries are the judging ones, for oracles.
  Yardsticks(const Backend& reference, LayerTensors layer, bool judged)
      : layer_(std::move(layer)), judged_(judged), kernels_(reference.scoring(layer_)) {}

  Index layer() const { return layer_.layer; }
  const LayerTensors& tensors() const { return layer_; }

  /// compute(view, kernels) on the reference's numbers.
  template <class Compute>
  auto expected(const Compute& compute) {
    return compute(view(layer_), *kernels_);
  }

  /// The same in a plain evaluation; nothing where that leaves the range of its numbers.
  template <class Compute>
  auto plain(const Precision& precision, const Compute& compute)
      -> std::optional<decltype(compute(std::declval<LayerView>(), std::declval<ScoringKernels&>()))> {
    const auto [entry, is_new] = plain_.try_emplace(precision.type());
    if (is_new) entry->second = std::make_unique<Plain>(layer_, precision);
    try {
      return compute(view(entry->second->layer), *entry->second->kernels);
    } catch (const BackendError&) {
      return std::nullopt;
    }
  }

  /// Judges `found` by compute(view, kernels), a matrix.
  template <class Compute>
  void judge(const Matrix& found, const Compute& compute, const Precision& precision, ValueCheck& check,
             Index rows_per_head = 1) {
    const Matrix expected = this->expected(compute);
    const auto plain = this->plain(precision, compute);
    judge_values({.found = found, .expected = expected, .plain = plain ? &*plain : nullptr, .rows_per_head = rows_per_head},
                 precision, layer(), check);
  }

  /// A policy's scores, the plain ones rounded as a program would store them.
  LayerScores expected_scores(const Policy& policy, const std::vector<Index>& budgets);
  std::optional<LayerScores> plain_scores(const Policy& policy, const std::vector<Index>& budgets,
                                          const Precision& precision);

 private:
  struct Plain {
    Plain(const LayerTensors& exact, const Precision& precision)
        : layer(round_layer(exact, precision)), kernels(make_plain_scoring(layer, precision)) {}
    LayerTensors layer;
    std::unique_ptr<ScoringKernels> kernels;
  };
  LayerView view(const LayerTensors& layer) const { return judged_ ? LayerView::of_judged(layer) : LayerView(layer); }

  LayerTensors layer_;
  bool judged_;
  std::unique_ptr<ScoringKernels> kernels_;
  std::map<ElementType, std::unique_ptr<Plain>> plain_;
};

/// The columns of a policy's scores that anything reads: all but the pinned tokens.
Values score_values(const Matrix& found, const Matrix& expected, const Matrix* plain, const Policy& policy);

/// Judges the exact output of the layer's queries, [queries, D].
void judge_output(const Backend& reference, const LayerTensors& layer, const Matrix& found, const Precision& precision,
                  ValueCheck& check);

}  // namespace laprox::verify
