#pragma once

#include <filesystem>
#include <vector>

#include "laprox/dump_reader.h"
#include "laprox/sweep.h"

namespace laprox {

/// Writes one policy's scores, for authors of kernels: an HDF5 file with the attributes format = "laprox-scores",
/// version, policy (every option spelled out), dump_sha256, backend, precision (the backend's element type) and, per
/// layer, /layers/<i>/
///   scores [kv_heads, C] float64, ranking [kv_heads, C] int32 (best first),
///   column_norms and column_sums [query_heads, C] (of the policy's window, or of all prompt queries), value_norms
///   [query_heads, C]: those of the primitives that the policy's queries allow,
///   kept [budgets, kv_heads, C] uint8 (1: kept), where budgets are given; their labels are the root attribute
///   `budgets`,
///   output [M, D]: the exact output of the decoded queries, whose positions are /output_positions, where there are
///   any.
/// verify_candidate reads the same layout.
/// Throws what sweep_dump and write_report throw.
void write_scores(const std::filesystem::path& path, const DumpReader& dump, const Policy& policy,
                  const std::vector<BudgetRequest>& budgets, const Backend& backend, bool replace,
                  const Progress& progress = {});

}  // namespace laprox
