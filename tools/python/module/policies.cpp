#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "laprox/error.h"
#include "laprox/methods.h"
#include "laprox/policy.h"
#include "layer_view.h"

namespace laprox::python {

namespace {

/// A policy's score written in Python: function(layer, tokens per head or None) -> float64 [kv_heads, C].
class PythonScorer : public Scorer {
 public:
  PythonScorer(nb::object function, QueryNeed queries, Pins pins, bool depends_on_budget)
      : Scorer({.queries = queries,
                .pins = pins,
                .depends_on_budget = depends_on_budget,
                .decoding = Decoding::undefined}),
        function_(std::move(function)) {}
  ~PythonScorer() override {
    const nb::gil_scoped_acquire gil;
    function_.reset();
  }

  Matrix score(const LayerView& layer, ScoringKernels& kernels) const override { return call(layer, kernels, 0); }
  std::vector<Matrix> score_each(std::span<const Index> budgets, const LayerView& layer,
                                 ScoringKernels& kernels) const override {
    std::vector<Matrix> scores;
    for (const Index tokens : budgets) scores.push_back(call(layer, kernels, tokens));
    return scores;
  }

 private:
  Matrix call(const LayerView& view, ScoringKernels& kernels, Index tokens) const {
    const nb::gil_scoped_acquire gil;
    const Index context = view.context_length();
    const Index shown = std::min(traits().queries.counted(context), context);
    const nb::object layer = nb::cast(PolicyLayer(view, kernels, shown, tokens), nb::rv_policy::move);
    struct Close {
      PolicyLayer* layer;
      ~Close() { layer->close(); }
    } close{nb::cast<PolicyLayer*>(layer)};
    const nb::object budget = tokens > 0 ? nb::cast(tokens) : nb::none();
    const auto scores =
        nb::cast<nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>>(function_(layer, budget));
    require(static_cast<Index>(scores.shape(0)) == view.geometry().kv_heads &&
                static_cast<Index>(scores.shape(1)) == view.context_length(),
            "the package checks the shape of scores");
    return MatrixView<double>(scores.data(), static_cast<Index>(scores.shape(0)), static_cast<Index>(scores.shape(1)));
  }

  nb::object function_;
};

/// queries: -1 for all prompt queries, 0 for none, else how many of the last ones.
std::shared_ptr<Policy> own_policy(const std::string& text, nb::object function, Index queries, Index first, Index last,
                                   bool depends_on_budget, const std::string& allocator) {
  const QueryNeed need = queries == 0  ? QueryNeed{}
                         : queries < 0 ? QueryNeed{QueryNeed::Kind::all, 0}
                                       : QueryNeed{QueryNeed::Kind::window, queries};
  auto scorer = std::make_shared<PythonScorer>(std::move(function), need, Pins{first, last}, depends_on_budget);
  return std::make_shared<Policy>(compose_policy(text, std::move(scorer), allocator));
}

const char* to_string(QueryNeed::Kind kind) {
  switch (kind) {
    case QueryNeed::Kind::none:
      return "none";
    case QueryNeed::Kind::window:
      return "window";
    case QueryNeed::Kind::all:
      return "all";
    case QueryNeed::Kind::judged:
      return "judged";
  }
  throw Bug("unknown kind of queries");
}

nb::dict describe(const OptionSpec& option) {
  nb::dict entry;
  entry["name"] = option.name;
  entry["default"] = option.fallback;
  entry["help"] = option.help;
  entry["choices"] = option.choices;
  return entry;
}

template <class Info>
nb::dict describe_part(const Info& info) {
  nb::dict entry;
  entry["name"] = info.name;
  entry["summary"] = info.summary;
  entry["paper"] = info.paper;
  entry["description"] = info.description;
  entry["nested"] = info.nested;
  nb::list options;
  for (const OptionSpec& option : info.options) options.append(describe(option));
  entry["options"] = options;
  return entry;
}

nb::list describe_scorers() {
  nb::list entries;
  for (const ScorerInfo& info : scorers()) {
    nb::dict entry = describe_part(info);
    entry["default_allocator"] = info.default_allocator;
    entry["needs"] = info.needs;
    entry["is_oracle"] = parse_policy(info.name).scorer->traits().queries.kind == QueryNeed::Kind::judged;
    entries.append(entry);
  }
  return entries;
}

nb::list describe_methods() {
  nb::list entries;
  for (const Method& method : methods()) {
    nb::dict entry;
    entry["name"] = method.name;
    entry["summary"] = method.summary;
    entry["paper"] = method.paper;
    entry["policy"] = method.policy;
    entry["nested"] = method.nested;
    entries.append(entry);
  }
  return entries;
}

nb::list describe_allocators() {
  nb::list entries;
  for (const AllocatorInfo& info : allocators()) {
    nb::dict entry = describe_part(info);
    entry["scope"] = info.scope;
    entries.append(entry);
  }
  return entries;
}

}  // namespace

void add_policies(nb::module_& module) {
  nb::class_<Policy>(module, "Policy", "A score and a budget split, with every option resolved.")
      .def_prop_ro(
          "label", [](const Policy& policy) { return policy.label; }, "The policy as it was written.")
      .def_prop_ro(
          "spec", [](const Policy& policy) { return to_string(policy); }, "With every option spelled out.")
      .def_prop_ro("scorer", [](const Policy& policy) { return policy.scorer_name; })
      .def_prop_ro("allocator", [](const Policy& policy) { return policy.allocator_name; })
      .def_prop_ro(
          "queries", [](const Policy& policy) { return to_string(policy.scorer->traits().queries.kind); },
          "Which queries it reads: none, window, all or judged (an oracle).")
      .def_prop_ro("query_window", [](const Policy& policy) { return policy.scorer->traits().queries.window; })
      .def_prop_ro(
          "sums_attention",
          [](const Policy& policy) { return policy.scorer->traits().decoding == Decoding::accumulated; },
          "Whether it sums attention query by query while the model decodes.")
      .def_prop_ro("keeps_everything", [](const Policy& policy) { return policy.scorer->traits().keeps_everything; })
      .def("__repr__", [](const Policy& policy) { return "<laprox policy " + to_string(policy) + ">"; });
  module.def(
      "parse_policy", [](const std::string& text) { return std::make_shared<Policy>(parse_policy(text)); },
      nb::arg("text"));
  module.def("own_policy", &own_policy, nb::arg("text"), nb::arg("function"), nb::arg("queries"), nb::arg("first"),
             nb::arg("last"), nb::arg("depends_on_budget"), nb::arg("allocator"));
  module.def(
      "split_policies", [](const std::string& list) { return split_policies(list); }, nb::arg("list"));
  module.def("describe_scorers", &describe_scorers);
  module.def("describe_methods", &describe_methods);
  module.def("describe_allocators", &describe_allocators);
}

}  // namespace laprox::python
