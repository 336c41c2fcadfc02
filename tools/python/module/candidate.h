#pragma once

#include <memory>
#include <string>
#include <vector>

#include "laprox/candidate.h"
#include "module.h"

namespace laprox::python {

/// A kernel's results in memory. `arrays`: {name: {layer: (float64 [rows, columns], name of the type that they had)}};
/// `kept`: {layer: uint8 [budgets, kv_heads, C] of 0 and 1}; the package has checked the shapes.
std::unique_ptr<Candidate> make_candidate(const nb::dict& arrays, const nb::dict& kept,
                                          const std::vector<std::string>& budgets, std::vector<Index> output_positions);

}  // namespace laprox::python
