#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "laprox/cost.h"
#include "laprox/cuda.h"
#include "laprox/error.h"
#include "laprox/inspect.h"
#include "laprox/report.h"
#include "laprox/sweep.h"
#include "module.h"

namespace laprox::python {

namespace {

using Policies = std::vector<std::shared_ptr<Policy>>;

std::shared_ptr<Backend> make_backend(const std::string& name, int threads, int device) {
  if (name == "cpu") return make_cpu_backend(threads);
  if (name == "reference") return make_reference_backend();
  if (name != "cuda") throw UsageError("unknown backend '" + name + "'; known are cpu, cuda and reference");
#ifdef LAPROX_CUDA
  return make_cuda_backend(device, threads);
#else
  (void)device;
  throw BackendError(
      "this laprox was built without its CUDA backend; with nvcc installed, "
      "'pip install . --config-settings=cmake.define.LAPROX_CUDA=ON' builds one that has it");
#endif
}

SweepOptions options_of(const Policies& policies, const std::vector<std::string>& budgets) {
  SweepOptions options;
  for (const auto& policy : policies) options.policies.push_back(*policy);
  for (const std::string& budget : budgets) options.budgets.push_back(parse_budget(budget));
  return options;
}

nb::list scores(const LayerSource& source, const Policy& policy, const std::optional<std::string>& budget,
                const Backend& backend, nb::object progress) {
  std::vector<Matrix> found;
  {
    const Progress tell = make_progress(std::move(progress));
    const nb::gil_scoped_release unlocked;
    SweepOptions options;
    options.policies.push_back(policy);
    std::optional<BudgetRequest> request;
    if (budget) request = parse_budget(*budget);
    if (request) options.budgets.push_back(*request);
    if (!request && policy.scorer->traits().depends_on_budget) {
      throw UsageError("the scores of '" + policy.label +
                       "' depend on the budget; give one, for example budget=\"5%\"");
    }
    check_selection_request(source.info(), options);
    const auto visit = [&](const LayerTensors&, const Matrix& each, ScoringKernels&) { found.push_back(each); };
    visit_scores(source, policy, request, backend, visit, tell);
  }
  nb::list layers;
  for (Matrix& each : found) layers.append(to_numpy(std::move(each)));
  return layers;
}

/// The kept tokens of a head, ascending.
std::vector<std::int32_t> kept_tokens(const Ranking& ranking, Index count) {
  std::vector<std::int32_t> tokens(ranking.begin(), ranking.begin() + count);
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

/// One layer's kept tokens: ([kv_head] of ascending token numbers, mask [kv_heads, C]).
nb::tuple kept_of_layer(const std::vector<Ranking>& rankings, const std::vector<Index>& counts) {
  const std::size_t context = rankings.front().size();
  nb::list indices;
  std::vector<std::uint8_t> mask(rankings.size() * context, 0);
  for (std::size_t head = 0; head < rankings.size(); ++head) {
    std::vector<std::int32_t> tokens = kept_tokens(rankings[head], counts[head]);
    for (const std::int32_t token : tokens) mask[head * context + static_cast<std::size_t>(token)] = 1;
    const std::size_t count = tokens.size();
    indices.append(to_numpy(std::move(tokens), {count}));
  }
  return nb::make_tuple(indices, to_numpy(std::move(mask), {rankings.size(), context}));
}

/// [policy][budget][layer] of (tokens of each head, mask).
nb::list kept(const LayerSource& source, const Policies& policies, const std::vector<std::string>& budgets,
              const Backend& backend, nb::object progress) {
  std::vector<Selection> selections;
  {
    const Progress tell = make_progress(std::move(progress));
    const nb::gil_scoped_release unlocked;
    const SweepOptions options = options_of(policies, budgets);
    check_selection_request(source.info(), options);
    selections = select_kept(source, options, backend, tell);
  }
  nb::list result;
  for (const Selection& selection : selections) {
    nb::list cells;
    for (std::size_t b = 0; b < selection.counts.size(); ++b) {
      nb::list layers;
      for (std::size_t layer = 0; layer < selection.counts[b].size(); ++layer) {
        layers.append(kept_of_layer(selection.rankings(b)[layer], selection.counts[b][layer]));
      }
      cells.append(layers);
    }
    result.append(cells);
  }
  return result;
}

template <class T>
nb::ndarray<nb::numpy, T> reshaped(std::vector<T> values, const Report& report,
                                   const std::vector<std::string>& dimensions) {
  std::vector<std::size_t> shape;
  for (const std::string& dimension : dimensions) shape.push_back(static_cast<std::size_t>(report.extent(dimension)));
  return to_numpy(std::move(values), std::move(shape));
}

nb::dict to_dict(Report report) {
  nb::dict result, provenance, arrays;
  for (const auto& [name, value] : report.provenance) provenance[name.c_str()] = value;
  for (auto& [name, array] : report.arrays) {
    arrays[name.c_str()] = nb::make_tuple(array.dimensions, array.counts, array.meaning,
                                          reshaped(std::move(array.values), report, array.dimensions));
  }
  result["provenance"] = provenance;
  result["arrays"] = arrays;
  result["dump"] = report.dumps;
  result["dump_sha256"] = report.dump_hashes;
  result["dump_model"] = report.dump_models;
  result["policy"] = report.policies;
  result["policy_spec"] = report.policy_specs;
  result["budget"] = report.budgets;
  for (const char* dimension : {"layer", "kv_head", "query_head", "segment", "position"})
    result[dimension] = report.extent(dimension);
  if (!report.kept.starts.empty()) {
    const std::size_t count = report.kept.tokens.size();
    result["kept_start"] = reshaped(std::move(report.kept.starts), report, report.array("kept_count").dimensions);
    result["kept_tokens"] = to_numpy(std::move(report.kept.tokens), {count});
  }
  return result;
}

bool has_outputs(const DumpInfo& dump) {
  return std::any_of(dump.layers.begin(), dump.layers.end(), [](const LayerSummary& l) { return l.has_output; });
}

/// `check`: a dump that does not reproduce the outputs that it stores is not swept.
nb::dict sweep(const std::vector<std::shared_ptr<LayerSource>>& sources, const Policies& policies,
               const std::vector<std::string>& budgets, bool truncated, Index window, bool save_kept,
               const std::string& schedule, Index segments, bool check, const Backend& backend, nb::object progress) {
  Report report;
  {
    const Progress tell = make_progress(std::move(progress));
    const nb::gil_scoped_release unlocked;
    SweepOptions options = options_of(policies, budgets);
    options.mode = truncated ? SoftmaxMode::truncated : SoftmaxMode::renormalized;
    options.queries = window > 0 ? JudgedQueries::window : JudgedQueries::decoded;
    if (window > 0) options.window = window;
    options.save_kept = save_kept;
    options.checked = check;
    options.schedule = parse_schedule(schedule);
    options.segments = segments >= 0 ? segments : default_segments(options.schedule);
    Index total = 0, done = 0;
    for (const auto& source : sources) {
      check_request(source->info(), options);
      check_memory(source->info(), options, backend);
      total += (check && has_outputs(source->info()) ? 3 : 2) * static_cast<Index>(source->info().layers.size());
    }
    std::vector<DumpResult> results;
    for (const auto& source : sources) {
      const DumpInfo& info = source->info();
      const Progress step = [&](Index layer, Index, const std::string& what) {
        tell(++done, total, info.path.string() + ": " + what + " of layer " + std::to_string(layer));
      };
      if (check && has_outputs(info)) require_passed(info, check_dump(*source, backend, step));
      results.push_back(sweep_dump(*source, options, backend, step));
    }
    report = make_report(results, options, backend);
  }
  return to_dict(std::move(report));
}

}  // namespace

void add_replay(nb::module_& module) {
  nb::class_<Backend>(module, "Backend", "A way to compute the primitives.")
      .def_prop_ro("name", [](const Backend& backend) { return std::string(backend.name()); })
      .def_prop_ro("device", [](const Backend& backend) { return backend.device(); })
      .def_prop_ro("threads", [](const Backend& backend) { return backend.threads(); });
  module.def("make_backend", &make_backend, nb::arg("name"), nb::arg("threads"), nb::arg("device") = 0);
  module.def(
      "budget_amount",
      [](const std::string& budget) {
        const BudgetRequest request = parse_budget(budget);
        return nb::make_tuple(static_cast<int>(request.unit), request.amount);
      },
      nb::arg("budget"), "Unit and amount of a budget, the same for every spelling of it.");
  module.def(
      "budget_tokens",
      [](const LayerSource& source, const std::string& budget) {
        return resolve(parse_budget(budget), source.info()).tokens_per_head();
      },
      nb::arg("source"), nb::arg("budget"), "Tokens per KV head that a budget stands for.");
  module.def("scores", &scores, nb::arg("source"), nb::arg("policy"), nb::arg("budget").none(), nb::arg("backend"),
             nb::arg("progress").none());
  module.def("kept", &kept, nb::arg("source"), nb::arg("policies"), nb::arg("budgets"), nb::arg("backend"),
             nb::arg("progress").none());
  module.def("sweep", &sweep, nb::arg("sources"), nb::arg("policies"), nb::arg("budgets"), nb::arg("truncated"),
             nb::arg("window"), nb::arg("save_kept"), nb::arg("schedule"), nb::arg("segments"), nb::arg("check"),
             nb::arg("backend"), nb::arg("progress").none());
}

}  // namespace laprox::python
