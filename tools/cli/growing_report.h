#pragma once

#include <chrono>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "laprox/report.h"

namespace laprox::cli {

/// A sweep's report, dump by dump. Where no older report is in the way, what is done is written from time to time, so
/// that a sweep that ends early can be resumed.
class GrowingReport {
 public:
  /// `resume`: takes over what the file holds, if it is there. Throws UsageError where it was made with other policies,
  /// budgets, softmax, queries or without the kept tokens that are asked for.
  GrowingReport(const SweepOptions& options, const Backend& backend, std::filesystem::path output, bool resume);

  /// Whether the report that is resumed has this dump. Also remembers the order in which dumps are asked for. Throws
  /// UsageError where the report has other contents under this name: the file has changed since.
  bool holds(const DumpInfo& dump, const std::string& content_hash);
  /// Says which dumps the report that is resumed has beside those that were asked for.
  void tell_others() const;
  void add(const DumpResult& result);
  /// The report of all dumps, in the order in which they were asked for.
  Report finished() const;
  void write(const Report& report, bool replace);

 private:
  void take_over();

  const SweepOptions& options_;
  const Backend& backend_;
  std::filesystem::path output_;
  bool resume_, grows_;  ///< grows_: no older report would be lost by writing early
  std::vector<Report> parts_;
  std::map<std::string, std::string> done_;  ///< what the report that is resumed holds: hash and name
  std::vector<std::string> order_;           ///< hashes; empty unless resumed
  std::chrono::steady_clock::time_point written_;
  std::chrono::duration<double> writing_{0};
};

}  // namespace laprox::cli
