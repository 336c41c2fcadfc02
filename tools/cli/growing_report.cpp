#include "growing_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "laprox/error.h"
#include "laprox/merge.h"
#include "laprox/policy.h"
#include "output.h"

namespace laprox::cli {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kBetween{10};  // seconds of work that an early end may lose ...
constexpr double kShare = 20;                 // ... or so many times what writing takes

/// Names of a report's arrays that do not depend on what its dumps hold.
std::set<std::string> figures_of(const Report& report) {
  std::set<std::string> names;
  for (const auto& [name, array] : report.arrays) {
    if (!name.ends_with("residual_error")) names.insert(name);
  }
  return names;
}

}  // namespace

GrowingReport::GrowingReport(const SweepOptions& options, const Backend& backend, std::filesystem::path output,
                             bool resume)
    : options_(options), backend_(backend), output_(std::move(output)), resume_(resume), written_(Clock::now()) {
  std::error_code ignored;
  const bool there = !output_.empty() && std::filesystem::exists(output_, ignored);
  grows_ = !output_.empty() && (resume_ || !there);
  if (resume_ && there) take_over();
}

void GrowingReport::take_over() {
  Report before = read_report(output_);
  Report mine = make_report({}, options_, backend_);
  const auto require_same = [&](const char* what, bool same) {
    if (same) return;
    throw UsageError(fmt::format("{}: --resume: was made with other {}; --force begins anew", output_.string(), what));
  };
  require_same("policies", before.policy_specs == mine.policy_specs && before.policies == mine.policies);
  require_same("budgets", before.budgets == mine.budgets);
  for (const char* key : {"softmax", "queries", "backend", "schedule"}) {
    require_same(key, before.stated(key) == mine.stated(key));
  }
  require_same("checks of stored outputs (--no-check)", before.stated("check") == mine.stated("check"));
  require_same("segments", before.segments == mine.segments);
  require_same("kept tokens (--save-kept)", options_.save_kept == !before.kept.starts.empty());
  require_same("figures", figures_of(before) == figures_of(mine));
  for (std::size_t d = 0; d < before.dumps.size(); ++d) done_.emplace(before.dump_hashes[d], before.dumps[d]);
  parts_.push_back(std::move(before));
}

bool GrowingReport::holds(const DumpInfo& dump, const std::string& content_hash) {
  order_.push_back(content_hash);
  const std::string name = dump.path.string();
  if (done_.contains(content_hash)) {
    note(fmt::format("{}: is in {} already", name, output_.string()));
    return true;
  }
  for (const auto& [hash, other] : done_) {
    if (other != name) continue;
    throw UsageError(fmt::format(
        "{}: has changed since {} was written, or is another file of that name (SHA-256 {}, found {}); give "
        "it another name, or begin anew with --force",
        name, output_.string(), hash, content_hash));
  }
  return false;
}

void GrowingReport::tell_others() const {
  for (const auto& [hash, name] : done_) {
    if (std::find(order_.begin(), order_.end(), hash) != order_.end()) continue;
    note(fmt::format("laprox: {} holds {} too, which was not asked for: it stays in it", output_.string(), name));
  }
}

void GrowingReport::add(const DumpResult& result) {
  parts_.push_back(make_report({result}, options_, backend_));
  const auto since = Clock::now() - written_;
  if (!grows_ || since < kBetween || since < kShare * writing_) return;
  try {
    write(finished(), true);
  } catch (const FileError& error) {  // the disk may have room again at the end; what is swept is not given up
    note(fmt::format("laprox: {}; the sweep goes on", error.what()));
    written_ = Clock::now();
  }
}

Report GrowingReport::finished() const {
  require(!parts_.empty(), "a sweep has at least one dump");
  Report report = merge_reports(parts_, std::vector<std::string>(parts_.size(), output_.string())).report;
  return order_.empty() ? report : with_dump_order(report, order_);
}

void GrowingReport::write(const Report& report, bool replace) {
  const auto begun = Clock::now();
  write_report(output_, report, replace || grows_);
  written_ = Clock::now();
  writing_ = written_ - begun;
}

}  // namespace laprox::cli
