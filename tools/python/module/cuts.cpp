// The cuts of a schedule one by one, for a loop that decodes with the model itself (laprox.eval).
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "laprox/error.h"
#include "laprox/schedule.h"
#include "laprox/sweep.h"
#include "module.h"

namespace laprox::python {

namespace {

using Places = std::vector<std::int32_t>;
using Sums = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

/// Caches as if they were a prompt's: the places of the entries that a budget of `count` evicts, [layer][kv_head].
std::vector<std::vector<Places>> evicted_places(const LayerSource& caches, const Policy& policy, Index count,
                                                const Backend& backend) {
  std::vector<std::vector<Places>> evicted;
  const nb::gil_scoped_release unlocked;
  const BudgetRequest budget = parse_budget(std::to_string(count));
  const auto visit = [&](const LayerTensors&, const Matrix& scores, ScoringKernels&) {
    auto& of_layer = evicted.emplace_back();
    for (Index head = 0; head < scores.rows(); ++head) {
      const std::span row(scores.row(head).data(), static_cast<std::size_t>(scores.cols()));
      of_layer.push_back(policy.scorer->evict(row, count));
    }
  };
  visit_scores(caches, policy, budget, backend, visit, {});
  return evicted;
}

/// The same for one KV head by the attention [group, entries] that its entries have received.
Places evicted_by_sums(const Policy& policy, const Sums& sums, Index count) {
  const MatrixView<double> of_entries(sums.data(), static_cast<Index>(sums.shape(0)),
                                      static_cast<Index>(sums.shape(1)));
  return policy.scorer->evict(policy.scorer->score_sums(of_entries), count);
}

/// [layer]: the attention [query_heads, C] that the prompt's entries received from all its queries.
nb::list attention_sums(const LayerSource& source, const Policy& policy, const Backend& backend) {
  std::vector<Matrix> found;
  {
    const nb::gil_scoped_release unlocked;
    const auto visit = [&](const LayerTensors&, const Matrix&, ScoringKernels& kernels) {
      found.push_back(kernels.column_sums());
    };
    visit_scores(source, policy, std::nullopt, backend, visit, {});
  }
  nb::list layers;
  for (Matrix& sums : found) layers.append(to_numpy(std::move(sums)));
  return layers;
}

}  // namespace

void add_cuts(nb::module_& module) {
  nb::class_<DecodingBudget>(module, "DecodingBudget", "What a cache may hold while the model decodes.")
      .def(
          "__init__",
          [](DecodingBudget* self, const std::string& budget, const LayerSource& source, const std::string& schedule) {
            new (self) DecodingBudget(parse_budget(budget), source.info(), parse_schedule(schedule));
          },
          nb::arg("budget"), nb::arg("source"), nb::arg("schedule"))
      .def("tokens", &DecodingBudget::tokens, nb::arg("seen"),
           "Entries per KV head once so many tokens have been processed.");
  module.def(
      "schedule_interval", [](const std::string& schedule) { return parse_schedule(schedule).interval; },
      nb::arg("schedule"), "Decoded tokens between two cuts; 0: only the cut after the prompt.");
  module.def("evicted_places", &evicted_places, nb::arg("caches"), nb::arg("policy"), nb::arg("count"),
             nb::arg("backend"));
  module.def("evicted_by_sums", &evicted_by_sums, nb::arg("policy"), nb::arg("sums"), nb::arg("count"));
  module.def("attention_sums", &attention_sums, nb::arg("source"), nb::arg("policy"), nb::arg("backend"));
}

}  // namespace laprox::python
