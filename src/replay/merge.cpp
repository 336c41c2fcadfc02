#include "laprox/merge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <set>

#include "laprox/error.h"

namespace laprox {

namespace {

constexpr std::size_t kNowhere = std::numeric_limits<std::size_t>::max();

/// Where each label of a part stands in the whole; kNowhere: it is left out.
struct Places {
  std::vector<std::size_t> dumps, policies, budgets;

  std::size_t of(const std::string& dimension, std::size_t index) const {
    if (dimension == "dump") return dumps[index];
    if (dimension == "policy") return policies[index];
    if (dimension == "budget") return budgets[index];
    return index;
  }
};

/// Calls visit(position in the part's array, position in the whole's) for every entry that has a place.
template <class Visit>
void for_each_entry(const std::vector<std::string>& dimensions, const Report& part, const Report& whole,
                    const Places& places, const Visit& visit) {
  std::vector<std::size_t> index(dimensions.size(), 0);
  std::size_t size = 1;
  for (const std::string& dimension : dimensions) size *= static_cast<std::size_t>(part.extent(dimension));
  for (std::size_t from = 0; from < size; ++from) {
    std::size_t to = 0;
    for (std::size_t i = 0; i < dimensions.size() && to != kNowhere; ++i) {
      const std::size_t place = places.of(dimensions[i], index[i]);
      to = place == kNowhere ? kNowhere : to * static_cast<std::size_t>(whole.extent(dimensions[i])) + place;
    }
    if (to != kNowhere) visit(from, to);
    for (std::size_t i = dimensions.size(); i-- > 0;) {
      if (++index[i] < static_cast<std::size_t>(part.extent(dimensions[i]))) break;
      index[i] = 0;
    }
  }
}

std::size_t size_of(const Report& report, const std::vector<std::string>& dimensions) {
  std::size_t size = 1;
  for (const std::string& dimension : dimensions) size *= static_cast<std::size_t>(report.extent(dimension));
  return size;
}

using Dimensions = std::vector<std::string>;

/// Policies that keep the same all name the first of them, which may be another one, or nowhere, in the whole.
void name_twins_anew(const Report& part, const Places& places, Report& whole) {
  const auto found = part.arrays.find("identical_to");
  if (found == part.arrays.end()) return;
  const std::vector<double>& twins = found->second.values;
  std::vector<double>& out = whole.arrays.at("identical_to").values;
  const std::size_t policies = part.policies.size(), budgets = part.budgets.size();
  for (std::size_t d = 0; d < part.dumps.size(); ++d) {
    for (std::size_t b = 0; b < budgets; ++b) {
      if (places.dumps[d] == kNowhere || places.budgets[b] == kNowhere) continue;
      const auto named = [&](std::size_t p) {
        const double twin = twins[(d * policies + p) * budgets + b];
        return twin < 0 ? p : static_cast<std::size_t>(twin);
      };
      std::map<std::size_t, std::size_t> first;  // by the policy that they name: the first one's place in the whole
      for (std::size_t p = 0; p < policies; ++p) {
        const auto [entry, is_new] = first.try_emplace(named(p), places.policies[p]);
        if (!is_new) entry->second = std::min(entry->second, places.policies[p]);
      }
      for (std::size_t p = 0; p < policies; ++p) {
        const std::size_t place = places.policies[p], twin = first.at(named(p));
        if (place == kNowhere) continue;
        const std::size_t at = (places.dumps[d] * whole.policies.size() + place) * whole.budgets.size();
        out[at + places.budgets[b]] = twin == place ? -1 : static_cast<double>(twin);
      }
    }
  }
}

void copy_arrays(const Report& part, const Places& places, const std::set<std::string>& without, Report& whole) {
  for (const auto& [name, from] : part.arrays) {
    if (without.contains(name)) continue;
    const auto [found, is_new] = whole.arrays.try_emplace(name, from);
    ReportArray& to = found->second;
    if (is_new) {
      to.values.assign(size_of(whole, to.dimensions), to.counts ? -1 : std::numeric_limits<double>::quiet_NaN());
    }
    require(to.dimensions == from.dimensions, "an array has the same dimensions in every report");
    for_each_entry(from.dimensions, part, whole, places,
                   [&](std::size_t source, std::size_t target) { to.values[target] = from.values[source]; });
  }
  name_twins_anew(part, places, whole);
}

void copy_kept(const Report& part, const Places& places, Report& whole) {
  const ReportArray& counts = part.array("kept_count");
  if (whole.kept.starts.empty()) whole.kept.starts.assign(size_of(whole, counts.dimensions), -1);
  for_each_entry(counts.dimensions, part, whole, places, [&](std::size_t source, std::size_t target) {
    if (part.kept.starts[source] < 0) return;
    whole.kept.starts[target] = static_cast<std::int64_t>(whole.kept.tokens.size());
    const auto first = part.kept.tokens.begin() + part.kept.starts[source];
    whole.kept.tokens.insert(whole.kept.tokens.end(), first,
                             first + static_cast<std::ptrdiff_t>(counts.values[source]));
  });
}

bool has_kept(const Report& report) { return !report.kept.starts.empty(); }

class Merger {
 public:
  Merger(const std::vector<Report>& parts, const std::vector<std::string>& names) : parts_(parts), names_(names) {}

  MergedReport merge() {
    require(!parts_.empty() && names_.size() == parts_.size(), "at least one report, and a name for each");
    check_questions();
    check_arrays();
    add_provenance();
    keep_common("policy", &Report::policies, &Report::policy_specs);
    keep_common("budget", &Report::budgets, &Report::budgets);
    add_dumps();
    const bool kept = std::all_of(parts_.begin(), parts_.end(), has_kept);
    if (!kept && std::any_of(parts_.begin(), parts_.end(), has_kept)) {
      note("kept tokens are left out: not every report has them");
    }
    std::size_t dump = 0;
    for (const Report& part : parts_) {
      Places places = places_of(part);
      for (std::size_t& place : places.dumps) place = dump++;
      copy_arrays(part, places, without_, whole());
      if (kept) copy_kept(part, places, whole());
    }
    return std::move(result_);
  }

 private:
  Report& whole() { return result_.report; }
  void note(const std::string& text) { result_.notes.push_back(text); }

  void check_questions() const {
    for (const char* key : {"softmax", "queries", "schedule"}) {
      for (std::size_t i = 1; i < parts_.size(); ++i) {
        if (parts_[i].stated(key) == parts_[0].stated(key)) continue;
        throw UsageError(fmt::format("{}: its {} is {}, that of {} is {}; such figures do not belong together",
                                     names_[i], key, parts_[i].stated(key), names_[0], parts_[0].stated(key)));
      }
    }
  }

  /// Every array over the same dimensions; those that only some reports have leave entries without a number.
  void check_arrays() {
    std::map<std::string, std::size_t> first;  // the first report that has an array, by its name
    std::set<std::string> incomplete;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      for (const auto& [name, array] : parts_[i].arrays) {
        const auto [known, is_new] = first.try_emplace(name, i);
        if (is_new && i > 0) incomplete.insert(name);
        const Dimensions& expected = parts_[known->second].array(name).dimensions;
        if (array.dimensions == expected) continue;
        throw UsageError(fmt::format("{}: its {} is over {}, that of {} over {}; such arrays do not belong together",
                                     names_[i], name, fmt::join(array.dimensions, ", "), names_[known->second],
                                     fmt::join(expected, ", ")));
      }
      for (const auto& [name, report] : first) {
        if (!parts_[i].arrays.contains(name)) incomplete.insert(name);
      }
    }
    for (std::size_t i = 1; i < parts_.size(); ++i) {
      if (parts_[i].segments == parts_[0].segments) continue;
      throw UsageError(
          fmt::format("{}: its errors are by {} segments, those of {} by {}; such figures do not belong together",
                      names_[i], parts_[i].segments, names_[0], parts_[0].segments));
    }
    // Regret is measured between two policies of the same sweep, which the whole then lacks.
    for (const char* name : {"regret", "model_regret"}) {
      if (incomplete.erase(name) > 0) without_.insert(name);
    }
    if (!without_.empty()) note("regret is left out: not every report has the policies random and oracle");
    if (incomplete.empty()) return;
    note(fmt::format("without numbers for some dumps, because not every report has it: {}",
                     fmt::join(incomplete, ", ")));
  }

  void add_provenance() {
    std::set<std::string> keys;
    for (const Report& part : parts_) {
      for (const auto& [key, value] : part.provenance) keys.insert(key);
    }
    for (const std::string& key : keys) {
      std::vector<std::string> values;
      for (const Report& part : parts_) {
        const std::string value = part.stated(key);
        if (std::find(values.begin(), values.end(), value) != values.end()) continue;
        values.push_back(value);
      }
      if (values.size() > 1) note(fmt::format("the reports differ in {}: {}", key, fmt::join(values, " | ")));
      whole().provenance[key] = fmt::format("{}", fmt::join(values, " | "));
    }
  }

  using Labels = std::vector<std::string> Report::*;

  /// Takes over those labels of the first report that every report has, compared by `identity`.
  void keep_common(const std::string& what, Labels labels, Labels identity) {
    std::set<std::string> left_out;
    const auto everywhere = [&](const std::string& id) {
      return std::all_of(parts_.begin(), parts_.end(), [&](const Report& part) {
        return std::find((part.*identity).begin(), (part.*identity).end(), id) != (part.*identity).end();
      });
    };
    for (const Report& part : parts_) {
      for (std::size_t i = 0; i < (part.*labels).size(); ++i) {
        const std::string& id = (part.*identity)[i];
        if (!everywhere(id)) left_out.insert((part.*labels)[i]);
        if (&part != &parts_[0] || !everywhere(id)) continue;
        (whole().*labels).push_back((part.*labels)[i]);
        if (labels != identity) (whole().*identity).push_back(id);
      }
    }
    if ((whole().*labels).empty()) {
      throw UsageError(fmt::format("{}: the reports have no {} in common", fmt::join(names_, ", "), what));
    }
    if (!left_out.empty())
      note(fmt::format("left out, because not every report has it: {}", fmt::join(left_out, ", ")));
  }

  void add_dumps() {
    std::map<std::string, std::string> report_of;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const Report& part = parts_[i];
      for (std::size_t d = 0; d < part.dumps.size(); ++d) {
        const auto [other, is_new] = report_of.try_emplace(part.dump_hashes[d], names_[i]);
        if (!is_new) {
          throw UsageError(fmt::format("{}: holds the dump {} (SHA-256 {}), and so does {}; it would count twice",
                                       names_[i], part.dumps[d], part.dump_hashes[d], other->second));
        }
        whole().dumps.push_back(part.dumps[d]);
        whole().dump_hashes.push_back(part.dump_hashes[d]);
        whole().dump_models.push_back(part.dump_models[d]);
      }
      whole().layers = std::max(whole().layers, part.layers);
      whole().kv_heads = std::max(whole().kv_heads, part.kv_heads);
      whole().query_heads = std::max(whole().query_heads, part.query_heads);
      whole().positions = std::max(whole().positions, part.positions);
      whole().segments = std::max(whole().segments, part.segments);
    }
  }

  Places places_of(const Report& part) const {
    const auto places = [](const std::vector<std::string>& mine, const std::vector<std::string>& all) {
      std::vector<std::size_t> found;
      for (const std::string& label : mine) {
        const auto place = std::find(all.begin(), all.end(), label);
        found.push_back(place == all.end() ? kNowhere : static_cast<std::size_t>(place - all.begin()));
      }
      return found;
    };
    const Report& all = result_.report;
    return {std::vector<std::size_t>(part.dumps.size()), places(part.policy_specs, all.policy_specs),
            places(part.budgets, all.budgets)};
  }

  std::set<std::string> without_;  ///< arrays that the whole does not have
  const std::vector<Report>& parts_;
  const std::vector<std::string>& names_;
  MergedReport result_;
};

std::vector<std::size_t> counted(std::size_t size) {
  std::vector<std::size_t> places(size);
  for (std::size_t i = 0; i < size; ++i) places[i] = i;
  return places;
}

}  // namespace

MergedReport merge_reports(const std::vector<Report>& parts, const std::vector<std::string>& names) {
  return Merger(parts, names).merge();
}

Report with_dump_order(const Report& report, const std::vector<std::string>& hashes) {
  std::vector<std::size_t> order = counted(report.dumps.size());
  const auto rank = [&](std::size_t dump) {
    return std::find(hashes.begin(), hashes.end(), report.dump_hashes[dump]) - hashes.begin();
  };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return rank(a) < rank(b); });
  Report ordered = report;
  ordered.arrays.clear();
  ordered.kept = {};
  for (std::size_t to = 0; to < order.size(); ++to) {
    ordered.dumps[to] = report.dumps[order[to]];
    ordered.dump_hashes[to] = report.dump_hashes[order[to]];
    ordered.dump_models[to] = report.dump_models[order[to]];
  }
  // Dump by dump, so that the kept tokens lie in the order in which a sweep writes them.
  for (std::size_t to = 0; to < order.size(); ++to) {
    Places places{std::vector<std::size_t>(order.size(), kNowhere), counted(report.policies.size()),
                  counted(report.budgets.size())};
    places.dumps[order[to]] = to;
    copy_arrays(report, places, {}, ordered);
    if (has_kept(report)) copy_kept(report, places, ordered);
  }
  return ordered;
}

}  // namespace laprox
