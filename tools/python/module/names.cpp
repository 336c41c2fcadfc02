#include "laprox/names.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "laprox/figures.h"
#include "module.h"

namespace laprox::python {

namespace {

/// Of every figure: its name, its array of each layer and its array of the model; nothing where reports have none.
std::vector<nb::tuple> describe_figures() {
  std::vector<nb::tuple> described;
  for (const Figure& figure : figures()) {
    const auto array = [](const char* meaning, const std::string& name) {
      return meaning ? std::optional(name) : std::nullopt;
    };
    described.push_back(nb::make_tuple(figure.name, array(figure.layer_meaning, figure.layer_array()),
                                       array(figure.model_meaning, figure.model_array())));
  }
  return described;
}

}  // namespace

void add_names(nb::module_& module) {
  module.def("nearest", &nearest, nb::arg("name"), nb::arg("known"), "The known name nearest to a name.");
  module.def("near_miss", &near_miss, nb::arg("name"), nb::arg("known"),
             "The known name that a name is a misspelling of, or None.");
  module.def("printable", &printable, nb::arg("text"), "The text with control characters written as \\x1b.");
  module.def("describe_figures", &describe_figures,
             "(name, a layer's array or None, the model's array or None) of every figure that reports hold.");
}

}  // namespace laprox::python
