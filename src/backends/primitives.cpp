#include "laprox/primitives.h"

#include <algorithm>

#include "laprox/error.h"

namespace laprox {

const WindowStatistics& ScoringKernels::window_statistics(Index window) {
  require(window > 0, "a window has a query");
  return recall(window_statistics_, &ScoringKernels::compute_window_statistics, window);
}
const Matrix& ScoringKernels::window_products(Index window) {
  require(window > 0, "a window has a query");
  return recall(window_products_, &ScoringKernels::compute_window_products, window);
}
const Matrix& ScoringKernels::column_sums() { return recall(column_sums_, &ScoringKernels::compute_column_sums); }
const Matrix& ScoringKernels::value_norms() { return recall(value_norms_, &ScoringKernels::compute_value_norms); }
const Matrix& ScoringKernels::value_l1_norms() {
  return recall(value_l1_norms_, &ScoringKernels::compute_value_l1_norms);
}
const Matrix& ScoringKernels::value_products() {
  return recall(value_products_, &ScoringKernels::compute_value_products);
}

const Matrix& ScoringKernels::removal_energies(Index window, OverQueries over, bool joint) {
  require(window > 0, "a window has a query");
  return recall(removal_energies_, &ScoringKernels::compute_removal_energies, window, over, joint);
}
const Matrix& ScoringKernels::far_energies(Index distance, Index queries) {
  return recall(far_energies_, &ScoringKernels::compute_far_energies, distance, queries);
}

namespace {

/// One of the matrices that visit_heads hands out, head under head. The visitor may be called from several threads.
Matrix visited(const LayerView& layer, ScoringKernels& kernels, Index window, Matrix HeadAttention::*part,
               Index columns) {
  Matrix all(layer.geometry().query_heads * window, columns);
  kernels.visit_heads(window, [&](Index head, const HeadAttention& attention) {
    all.middleRows(head * window, window) = attention.*part;
  });
  return all;
}

}  // namespace

// far_energies are left out: their plain evaluation takes tokens x tokens x D operations. Who verifies laprox-far has
// them assessed as its scores.
std::vector<Primitive> primitives(Index window) {
  using Kind = QueryNeed::Kind;
  using View = const LayerView&;
  using Kernels = ScoringKernels&;
  return {
      {"column_norms", "head", Kind::window, 1,
       [=](View, Kernels k) -> Matrix { return k.window_statistics(window).squares.cwiseSqrt(); }},
      {"column_sums", "head", Kind::window, 1, [=](View, Kernels k) { return k.window_statistics(window).sum; }},
      {"window_products", "pair", Kind::window, 1, [=](View, Kernels k) { return k.window_products(window); }},
      {"window weights", "head", Kind::window, window,
       [=](View v, Kernels k) { return visited(v, k, window, &HeadAttention::weights, v.context_length()); }},
      {"window logits", "head", Kind::window, window,
       [=](View v, Kernels k) { return visited(v, k, window, &HeadAttention::logits, v.context_length()); }},
      {"window outputs", "head", Kind::window, window,
       [=](View v, Kernels k) { return visited(v, k, window, &HeadAttention::outputs, v.geometry().value_size); }},
      {"column_sums of all", "head", Kind::all, 1, [](View, Kernels k) { return k.column_sums(); }},
      {"value_norms", "head", Kind::none, 1, [](View, Kernels k) { return k.value_norms(); }},
      {"value_l1_norms", "head", Kind::none, 1, [](View, Kernels k) { return k.value_l1_norms(); }},
      {"removal norms", "KV head", Kind::window, 1,
       [=](View, Kernels k) -> Matrix { return k.removal_energies(window, OverQueries::maximum, true).cwiseSqrt(); }},
      {"separate removal norms", "KV head", Kind::window, 1,
       [=](View, Kernels k) -> Matrix { return k.removal_energies(window, OverQueries::sum, false).cwiseSqrt(); }},
      {"value_products", "pair", Kind::none, 1, [](View, Kernels k) { return k.value_products(); }},
  };
}

Primitive find_primitive(const std::string& name, Index window) {
  const std::vector<Primitive> all = primitives(window);
  const auto found = std::find_if(all.begin(), all.end(), [&](const Primitive& each) { return each.name == name; });
  require(found != all.end(), "the table of primitives has the one that is asked for");
  return *found;
}

}  // namespace laprox
