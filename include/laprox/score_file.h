#pragma once

#include <filesystem>
#include <optional>
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

/// A policy whose scores, or else kept tokens, come from a file of this layout: `text` is
/// FILE[+allocator][:key=value,...], and its label is the file's stem with what follows. Where the file names its
/// policy, that policy's pinned tokens, ranking and split hold; else nothing is pinned, and `head` splits. Kept tokens
/// serve the file's own budgets only, and `budgets` are what they are wanted for. Throws DumpError where the file
/// breaks the layout, lacks a layer or belongs to another dump; UsageError where it cannot serve the request. All
/// layers are read and checked; with `layers`, only what these need is kept in memory, and only they can be scored.
Policy read_score_policy(const std::string& text, const DumpReader& dump, const std::vector<BudgetRequest>& budgets,
                         const std::optional<std::vector<Index>>& layers = std::nullopt);

}  // namespace laprox
