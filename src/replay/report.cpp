#include "laprox/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <thread>

#include "laprox/error.h"
#include "laprox/figures.h"
#include "laprox/version.h"
#include "replay/selection.h"

namespace laprox {

namespace {

/// Where an element of a row-major array stands.
std::size_t offset_in(const Report& report, const ReportArray& array, std::initializer_list<std::size_t> indices) {
  std::size_t at = 0, dimension = 0;
  for (std::size_t index : indices) {
    at = at * static_cast<std::size_t>(report.extent(array.dimensions[dimension++])) + index;
  }
  return at;
}

using Dimensions = std::vector<std::string>;
const Dimensions kCell{"dump", "policy", "budget"};

Dimensions with(Dimensions dimensions, std::initializer_list<const char*> more) {
  dimensions.insert(dimensions.end(), more.begin(), more.end());
  return dimensions;
}

/// The policies between which regret is measured: the first oracle and the first random one of the sweep.
struct RegretScale {
  explicit RegretScale(const std::vector<Policy>& policies) {
    for (std::size_t p = 0; p < policies.size(); ++p) {
      if (policies[p].scorer_name == "oracle" && !oracle) oracle = p;
      if (policies[p].scorer_name == "random" && !random) random = p;
    }
  }
  bool known() const { return oracle && random; }
  std::optional<std::size_t> oracle, random;
};

/// NaN where the oracle is no better than random: errors closer than this share differ by rounding alone, and so do
/// errors that are next to nothing.
double regret(double error, double best, double worst) {
  constexpr double kRounding = 1e-6, kNothing = 1e-7;
  return worst > kNothing && worst - best > kRounding * worst ? (error - best) / (worst - best)
                                                              : std::numeric_limits<double>::quiet_NaN();
}

class ReportBuilder {
 public:
  ReportBuilder(const std::vector<DumpResult>& results, const SweepOptions& options)
      : results_(results), options_(options), regret_(options.policies) {}

  Report build() {
    add_labels();
    add_figures();
    for (std::size_t d = 0; d < results_.size(); ++d) {
      for (std::size_t b = 0; b < options_.budgets.size(); ++b) {
        put("budget_tokens", {d, b}, static_cast<double>(results_[d].budgets[b].tokens_per_head()));
      }
      put("context_length", {d}, static_cast<double>(results_[d].info.context_length));
      add_segment_starts(d);
      for (std::size_t p = 0; p < options_.policies.size(); ++p) {
        for (std::size_t b = 0; b < options_.budgets.size(); ++b) add_cell(d, p, b);
      }
    }
    for (std::size_t p = 0; p < options_.policies.size(); ++p) {
      put("is_oracle", {p}, options_.policies[p].scorer->traits().queries.kind == QueryNeed::Kind::judged ? 1 : 0);
    }
    if (options_.save_kept) add_kept();
    return std::move(report_);
  }

 private:
  void add_labels() {
    for (const DumpResult& result : results_) {
      report_.dumps.push_back(result.info.path.string());
      report_.dump_hashes.push_back(result.content_hash);
      report_.dump_models.push_back(result.info.model);
      report_.layers = std::max(report_.layers, static_cast<Index>(result.info.layers.size()));
      for (const LayerSummary& layer : result.info.layers) {
        report_.kv_heads = std::max(report_.kv_heads, layer.geometry.kv_heads);
        report_.query_heads = std::max(report_.query_heads, layer.geometry.query_heads);
      }
    }
    report_.segments = options_.segments;
    if (options_.save_kept && !options_.schedule.once()) {
      for (const DumpResult& result : results_) report_.positions = std::max(report_.positions, result.info.tokens);
    }
    for (const Policy& policy : options_.policies) {
      report_.policies.push_back(policy.label);
      report_.policy_specs.push_back(to_string(policy));
    }
    for (const BudgetRequest& budget : options_.budgets) report_.budgets.push_back(budget.text);
  }

  void add_array(const std::string& name, Dimensions dimensions, const std::string& meaning, bool counts = false) {
    Index size = 1;
    for (const std::string& dimension : dimensions) size *= report_.extent(dimension);
    const double missing = counts ? -1 : std::numeric_limits<double>::quiet_NaN();
    report_.arrays[name] = {std::move(dimensions), counts, meaning,
                            std::vector<double>(static_cast<std::size_t>(size), missing)};
  }

  bool is_formed(const Figure& figure) const {
    const std::string name = figure.name;
    if (name == "regret") return regret_.known();
    if (name == "residual_error") return has_residual_norms();
    return !figure.truncated_only || options_.mode == SoftmaxMode::truncated;
  }

  /// Whether any layer of any dump has them; the others' figures are missing entries.
  bool has_residual_norms() const {
    return std::any_of(results_.begin(), results_.end(), [](const DumpResult& result) {
      return std::any_of(result.info.layers.begin(), result.info.layers.end(),
                         [](const LayerSummary& layer) { return layer.has_residual_norms; });
    });
  }

  void add_figures() {
    for (const Figure& figure : figures()) {
      if (!is_formed(figure)) continue;
      if (figure.layer_meaning) add_array(figure.layer_array(), with(kCell, {"layer"}), figure.layer_meaning);
      if (figure.model_meaning) add_array(figure.model_array(), kCell, figure.model_meaning);
    }
    add_array("head_relative_error", with(kCell, {"layer", "query_head"}),
              "relative error of a head's output, before W_o");
    add_array("kept_count", with(kCell, {"layer", "kv_head"}), "kept context tokens, pinned ones included", true);
    add_array("kept_pairs", kCell, "kept (layer, KV head, token) entries of the whole model", true);
    add_array("on_budget", kCell,
              options_.schedule.once()
                  ? "1: the model's caches hold what the budget allows"
                  : "1: they do after the prompt, and then no cache ever holds more than the budget and one interval",
              true);
    add_array("identical_to", kCell,
              "index of the first earlier policy that keeps exactly the same entries at this budget, or -1", true);
    add_array("tied_entries", kCell,
              "entries with equal scores, of which the cut keeps some and evicts others by their position", true);
    add_array("unseen_entries", with(kCell, {"layer"}),
              "kept entries that no judging query and none after the prompt sees, because a sliding window has left "
              "them behind; layers that read one cache have one number",
              true);
    add_array("model_unseen_entries", kCell, "unseen_entries of the whole model, each cache once", true);
    add_array("budget_tokens", {"dump", "budget"}, "tokens per KV head that the budget stands for", true);
    add_array("context_length", {"dump"}, "tokens of the prompt", true);
    add_array("is_oracle", {"policy"}, "1: the policy reads the judging queries, which no cache can", true);
    add_decoding_arrays();
  }

  void add_decoding_arrays() {
    if (options_.segments > 0) {
      add_array("segment_error", with(kCell, {"layer", "segment"}),
                "relative error over a stretch of the judging queries; NaN: it has none");
      add_array("model_segment_error", with(kCell, {"segment"}),
                "relative error over a stretch of the judging queries, pooled over layers; NaN: it has none");
      add_array("segment_start", {"dump", "segment"},
                "position of the first judging query of a segment; -1: it has none", true);
    }
    if (options_.schedule.once()) return;
    add_array("cache_peak", kCell, "the most entries that a query found in any KV head's cache", true);
    add_array("cache_mean", kCell, "entries that a query found in a KV head's cache, mean over queries and heads");
    add_array("cuts", kCell, "decoded tokens after which an entry was evicted", true);
    add_array("evictions", kCell, "entries of the whole model that were evicted after the first decoded token", true);
    if (!options_.save_kept) return;
    add_array("evicted_at", with(kCell, {"layer", "kv_head", "position"}),
              "position of the first query that no longer finds the entry of this token; T: it is never evicted", true);
  }

  void add_segment_starts(std::size_t d) {
    if (options_.segments == 0) return;
    const DumpInfo& info = results_[d].info;
    const DumpInfo::Rows rows = judging_rows(info, options_);
    for (Index s = 0; s < options_.segments; ++s) {
      const Index begin = segment_begin(s, options_.segments, rows.count());
      if (begin == segment_begin(s + 1, options_.segments, rows.count())) continue;  // no query is left for it
      put("segment_start", {d, static_cast<std::size_t>(s)},
          static_cast<double>(info.query_positions[rows.first + begin]));
    }
  }

  void add_decoding(std::size_t d, std::size_t p, std::size_t b) {
    const Cell& cell = results_[d].policies[p].cells[b];
    const auto segments = static_cast<std::size_t>(options_.segments);
    for (std::size_t s = 0; s < segments; ++s) {
      if (report_.at("segment_start", {d, s}) < 0) continue;  // no query, and no error of any
      put("model_segment_error", {d, p, b, s}, cell.model.segments[s]);
      for (std::size_t layer = 0; layer < cell.layers.size(); ++layer) {
        put("segment_error", {d, p, b, layer, s}, cell.layers[layer].segments[s].relative_error());
      }
    }
    if (options_.schedule.once()) return;
    put("cache_peak", {d, p, b}, static_cast<double>(cell.cache.peak));
    put("cache_mean", {d, p, b}, cell.cache.mean);
    put("cuts", {d, p, b}, static_cast<double>(cell.cache.cuts));
    put("evictions", {d, p, b}, static_cast<double>(cell.cache.evictions));
    for (std::size_t layer = 0; layer < cell.lifetimes.size(); ++layer) {
      for (std::size_t head = 0; head < cell.lifetimes[layer].size(); ++head) {
        const Lifetimes& gone = cell.lifetimes[layer][head];
        for (std::size_t i = 0; i < gone.size(); ++i) put("evicted_at", {d, p, b, layer, head, i}, gone[i]);
      }
    }
  }

  void put(const std::string& name, std::initializer_list<std::size_t> indices, double value) {
    ReportArray& array = report_.arrays.at(name);
    array.values[offset_in(report_, array, indices)] = value;
  }

  void add_cell(std::size_t d, std::size_t p, std::size_t b) {
    const Cell& cell = results_[d].policies[p].cells[b];
    if (regret_.known()) add_regret(d, p, b);
    for (const Figure& figure : figures()) {
      if (figure.of_model && is_formed(figure)) put(figure.model_array(), {d, p, b}, cell.model.*figure.of_model);
    }
    add_decoding(d, p, b);
    put("tied_entries", {d, p, b}, static_cast<double>(cell.tied));
    put("kept_pairs", {d, p, b}, static_cast<double>(total(cell.counts, results_[d].info)));
    put("on_budget", {d, p, b}, on_budget(results_[d], cell, b) ? 1 : 0);
    put("identical_to", {d, p, b}, static_cast<double>(cell.identical_to));
    add_unseen(d, p, b);
    for (std::size_t layer = 0; layer < cell.layers.size(); ++layer) {
      const LayerMetrics& metrics = cell.layers[layer];
      for (const Figure& figure : figures()) {
        if (figure.of_layer && is_formed(figure)) put(figure.name, {d, p, b, layer}, metrics.*figure.of_layer);
      }
      for (std::size_t head = 0; head < metrics.head_relative_error.size(); ++head) {
        put("head_relative_error", {d, p, b, layer, head}, metrics.head_relative_error[head]);
      }
      for (std::size_t head = 0; head < cell.counts[layer].size(); ++head) {
        put("kept_count", {d, p, b, layer, head}, static_cast<double>(cell.counts[layer][head]));
      }
    }
  }

  /// Whether a cell competes: it spends its budget, and under a schedule never more.
  bool on_budget(const DumpResult& result, const Cell& cell, std::size_t b) const {
    const Index tokens = std::min(result.budgets[b].tokens_per_head(), result.info.context_length);
    if (total(cell.counts, result.info) != tokens * result.budgets[b].heads()) return false;
    if (options_.schedule.once()) return true;
    const DecodingBudget budget(options_.budgets[b], result.info, options_.schedule);
    return cell.cache.peak <= budget.tokens(result.info.tokens) + options_.schedule.interval;
  }

  void add_unseen(std::size_t d, std::size_t p, std::size_t b) {
    const std::vector<Index>& unseen = results_[d].policies[p].cells[b].unseen;
    double model = 0;
    for (std::size_t layer = 0; layer < unseen.size(); ++layer) {
      const auto entries = static_cast<double>(unseen[layer]);
      put("unseen_entries", {d, p, b, layer}, entries);
      if (results_[d].info.layers[layer].kv_source < 0) model += entries;
    }
    put("model_unseen_entries", {d, p, b}, model);
  }

  void add_regret(std::size_t d, std::size_t p, std::size_t b) {
    const auto cell = [&](std::size_t policy) -> const Cell& { return results_[d].policies[policy].cells[b]; };
    const Cell &oracle = cell(*regret_.oracle), &random = cell(*regret_.random);
    put("model_regret", {d, p, b},
        regret(cell(p).model.relative_error, oracle.model.relative_error, random.model.relative_error));
    for (std::size_t layer = 0; layer < cell(p).layers.size(); ++layer) {
      put("regret", {d, p, b, layer},
          regret(cell(p).layers[layer].relative_error, oracle.layers[layer].relative_error,
                 random.layers[layer].relative_error));
    }
  }

  void add_kept() {
    const ReportArray& counts = report_.array("kept_count");
    report_.kept.starts.assign(counts.values.size(), -1);
    for (std::size_t d = 0; d < results_.size(); ++d) {
      for (std::size_t p = 0; p < options_.policies.size(); ++p) {
        const PolicyResult& policy = results_[d].policies[p];
        for (std::size_t b = 0; b < policy.cells.size(); ++b) {
          const HeadCounts& kept = policy.cells[b].counts;
          for (std::size_t layer = 0; layer < kept.size(); ++layer) {
            for (std::size_t head = 0; head < kept[layer].size(); ++head) {
              report_.kept.starts[offset_in(report_, counts, {d, p, b, layer, head})] =
                  static_cast<std::int64_t>(report_.kept.tokens.size());
              append_sorted(policy.selection.rankings(b)[layer][head], kept[layer][head]);
            }
          }
        }
      }
    }
  }

  void append_sorted(const Ranking& ranking, Index count) {
    const auto first = report_.kept.tokens.insert(report_.kept.tokens.end(), ranking.begin(), ranking.begin() + count);
    std::sort(first, report_.kept.tokens.end());
  }

  const std::vector<DumpResult>& results_;
  const SweepOptions& options_;
  const RegretScale regret_;
  Report report_;
};

}  // namespace

Index Report::extent(const std::string& dimension) const {
  const auto size = [](const auto& labels) { return static_cast<Index>(labels.size()); };
  if (dimension == "dump") return size(dumps);
  if (dimension == "policy") return size(policies);
  if (dimension == "budget") return size(budgets);
  if (dimension == "layer") return layers;
  if (dimension == "kv_head") return kv_heads;
  if (dimension == "segment") return segments;
  if (dimension == "position") return positions;
  require(dimension == "query_head", "a known dimension");
  return query_heads;
}

const ReportArray& Report::array(const std::string& name) const {
  const auto found = arrays.find(name);
  require(found != arrays.end(), fmt::format("the report has {}", name));
  return found->second;
}

double Report::at(const std::string& name, std::initializer_list<std::size_t> indices) const {
  const ReportArray& figure = array(name);
  require(indices.size() == figure.dimensions.size(), "one index per dimension");
  return figure.values.at(offset_in(*this, figure, indices));
}

std::string Report::stated(const std::string& key) const {
  const auto found = provenance.find(key);
  if (found != provenance.end()) return found->second;
  return key == "schedule" ? "once" : key == "check" ? "done" : "not stated";
}

Report make_report(const std::vector<DumpResult>& results, const SweepOptions& options, const Backend& backend) {
  Report report = ReportBuilder(results, options).build();
  report.provenance = {
      {"tool_version", version()},
      {"git_commit", commit()},
      {"backend", std::string(backend.name())},
      {"device", backend.device()},
      {"threads", std::to_string(backend.threads())},
      {"softmax", std::string(to_string(options.mode))},
      {"queries", options.queries == JudgedQueries::decoded
                      ? "decoded (held out)"
                      : fmt::format("window (the last {} prompt queries; in-sample)", options.window)},
  };
  if (!options.schedule.once()) report.provenance["schedule"] = to_string(options.schedule);
  if (!options.checked) report.provenance["check"] = "left out";
  return report;
}

}  // namespace laprox
