#include "laprox/verify.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "candidate.h"
#include "module.h"

namespace laprox::python {

namespace {

nb::list describe(const std::vector<VerdictPart>& parts) {
  nb::list entries;
  for (const VerdictPart& part : parts) {
    nb::dict entry;
    entry["name"] = part.name;
    entry["measured"] = part.measured;
    entry["allowed"] = part.allowed;
    entry["passed"] = part.passed;
    entry["layer"] = part.layer;
    entry["row"] = part.row;
    entry["column"] = part.column;
    entries.append(entry);
  }
  return entries;
}

nb::dict describe(const Failing& failing) {
  nb::dict rows, entry;
  for (const auto& [layer, of_layer] : failing.rows) {
    rows[nb::cast(layer)] = nb::cast(std::vector<Index>(of_layer.begin(), of_layer.end()));
  }
  entry["elements"] = failing.elements;
  entry["rows_by_layer"] = rows;
  entry["columns"] = nb::make_tuple(failing.first_column, failing.last_column);
  entry["ratio"] = failing.least_ratio <= failing.most_ratio
                       ? nb::object(nb::make_tuple(failing.least_ratio, failing.most_ratio))
                       : nb::none();
  return entry;
}

nb::dict describe(const Verification& result) {
  nb::list values, kept, skipped;
  for (const ValueCheck& check : result.values) {
    nb::dict entry;
    entry["name"] = check.name;
    entry["policy"] = check.policy;
    entry["precision"] = std::string(to_string(check.precision));
    entry["elements"] = check.elements;
    entry["passed"] = check.passed();
    entry["parts"] = describe(check.parts);
    entry["failing"] = describe(check.failing);
    values.append(entry);
  }
  for (const KeptCheck& check : result.kept) {
    nb::dict entry;
    entry["policy"] = check.policy;
    entry["budget"] = check.budget;
    entry["differences"] = check.differences;
    entry["ties"] = check.ties;
    entry["passed"] = check.passed();
    entry["parts"] = describe(check.parts);
    kept.append(entry);
  }
  for (const SkippedCheck& check : result.skipped) {
    nb::dict entry;
    entry["name"] = check.name;
    entry["reason"] = check.reason;
    skipped.append(entry);
  }
  nb::dict entry;
  entry["subject"] = result.subject;
  entry["passed"] = result.passed();
  entry["values"] = values;
  entry["kept"] = kept;
  entry["skipped"] = skipped;
  return entry;
}

nb::dict verify(const LayerSource& source, const Backend& backend, const std::vector<std::shared_ptr<Policy>>& policies,
                const std::vector<std::string>& budgets, nb::object progress) {
  Verification result;
  {
    const Progress tell = make_progress(std::move(progress));
    const nb::gil_scoped_release unlocked;
    VerifyOptions options;
    options.threads = backend.threads();
    for (const auto& policy : policies) options.policies.push_back(*policy);
    for (const std::string& budget : budgets) options.budgets.push_back(parse_budget(budget));
    result = verify_backend(source, backend, options, tell);
  }
  return describe(result);
}

nb::dict verify_candidate(const LayerSource& source, const nb::dict& arrays, const nb::dict& kept,
                          std::vector<Index> output_positions, const std::vector<std::shared_ptr<Policy>>& policies,
                          const std::vector<std::string>& budgets, const std::string& precision, int threads,
                          nb::object progress) {
  const std::unique_ptr<Candidate> candidate = make_candidate(arrays, kept, budgets, std::move(output_positions));
  Verification result;
  {
    const Progress tell = make_progress(std::move(progress));
    const nb::gil_scoped_release unlocked;
    VerifyOptions options;
    options.threads = threads;
    if (!precision.empty()) options.precision = element_type(precision);
    for (const auto& policy : policies) options.policies.push_back(*policy);
    result = verify_candidate(source, *candidate, options, tell);
  }
  return describe(result);
}

}  // namespace

void add_verify(nb::module_& module) {
  module.def("verify_candidate", &verify_candidate, nb::arg("source"), nb::arg("arrays"), nb::arg("kept"),
             nb::arg("output_positions"), nb::arg("policies"), nb::arg("budgets"), nb::arg("precision"),
             nb::arg("threads"), nb::arg("progress").none());
  module.def("verify", &verify, nb::arg("source"), nb::arg("backend"), nb::arg("policies"), nb::arg("budgets"),
             nb::arg("progress").none());
}

}  // namespace laprox::python
