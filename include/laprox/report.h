#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "laprox/sweep.h"

namespace laprox {

/// A figure of a report over named dimensions, row-major. Missing entries (a layer with fewer heads) are NaN, or -1 in
/// counts.
struct ReportArray {
  std::vector<std::string> dimensions;  ///< among dump, policy, budget, layer, kv_head, query_head, segment, position
  bool counts = false;                  ///< integers
  std::string meaning;                  ///< one line, with its unit
  std::vector<double> values;
};

/// The kept tokens of every cell: ascending tokens[start .. start + kept_count] of each (dump, policy, budget, layer,
/// kv_head).
struct KeptTokens {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> starts;  ///< [dump, policy, budget, layer, kv_head], -1 where there is no such head
};

/// One sweep over one or more dumps, as it is written to and read from an HDF5 file.
struct Report {
  std::map<std::string, std::string>
      provenance;                        ///< tool_version, git_commit, backend, device, threads, softmax, queries ...
  std::vector<std::string> dumps;        ///< paths as given
  std::vector<std::string> dump_hashes;  ///< SHA-256 of the files
  std::vector<std::string> dump_models;
  std::vector<std::string> policies;                ///< labels as given
  std::vector<std::string> policy_specs;            ///< every option spelled out
  std::vector<std::string> budgets;                 ///< as given: "5%", "128"
  Index layers = 0, kv_heads = 0, query_heads = 0;  ///< the largest of any dump or layer
  Index segments = 0;   ///< stretches of the judging queries; 0: errors are not reported by segment
  Index positions = 0;  ///< the largest T of any dump, where the lifetimes of entries are stored; else 0
  std::map<std::string, ReportArray> arrays;
  KeptTokens kept;  ///< empty unless asked for

  Index extent(const std::string& dimension) const;
  const ReportArray& array(const std::string& name) const;
  /// The entry of an array at one index per dimension.
  double at(const std::string& name, std::initializer_list<std::size_t> indices) const;
  /// What the provenance says under a key, or what its silence means: one cut, stored outputs checked, else "not
  /// stated".
  std::string stated(const std::string& key) const;
};

/// Gathers what the sweeps of some dumps found.
Report make_report(const std::vector<DumpResult>& results, const SweepOptions& options, const Backend& backend);

/// Writes an HDF5 file with dimension scales, under its name only when complete. Throws UsageError where the file
/// exists and not `replace`, FileError where it cannot be written.
void write_report(const std::filesystem::path& path, const Report& report, bool replace);

/// Checks early, before long work, that write_report could write there. Same errors.
void check_writable(const std::filesystem::path& path, bool replace,
                    const std::vector<std::filesystem::path>& inputs = {});

/// Throws DumpError or FileError where the file is no report.
Report read_report(const std::filesystem::path& path);

}  // namespace laprox
