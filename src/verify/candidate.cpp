#include <fmt/format.h>

#include <algorithm>

#include "base/parallel.h"
#include "dump/queries.h"
#include "verify/kept.h"
#include "verify/yardsticks.h"

namespace laprox {

namespace {

using namespace verify;

class CandidateVerifier {
 public:
  CandidateVerifier(const LayerSource& dump, const Candidate& candidate, const VerifyOptions& options)
      : dump_(dump),
        info_(dump.info()),
        candidate_(candidate),
        reference_(make_reference_backend()),
        options_(options) {
    result_.subject = candidate.name();
    choose_policy(candidate.name());
    choose_rows();
    if (candidate_.has("ranking"))
      result_.skipped.push_back({"ranking", "it follows from the scores and is not assessed"});
    if (candidate_.has("scores") && policy_->scorer->traits().scores_are_places) {
      result_.skipped.push_back({"scores", kPlaces});
    }
    if (candidate_.has("kept")) {
      kept_precision_.emplace(precision_of_kept());
      kept_.emplace(*policy_, candidate_.budgets(), info_, *kept_precision_, KeptAssessor::Subject::candidate);
    }
  }

  Verification run(const Progress& progress) {
    const Index count = static_cast<Index>(info_.layers.size());
    for (Index layer = 0; layer < count; ++layer) {
      assess_scoring(layer);
      if (candidate_.has(layer, "output")) assess_candidate_output(layer);
      if (progress) progress(layer, count, "verify");
    }
    for (auto& [name, check] : checks_) result_.values.push_back(std::move(check));
    if (kept_) result_.kept = kept_->assess(masks_);
    return std::move(result_);
  }

 private:
  std::optional<Policy> asked_policy(const std::string& who) const {
    if (options_.policies.empty()) return std::nullopt;
    if (options_.policies.size() == 1) return options_.policies[0];
    throw UsageError(
        fmt::format("{} holds the results of one policy; --policy names {}", who, options_.policies.size()));
  }

  std::optional<Policy> stated_policy(const std::string& path) const {
    if (!candidate_.policy()) return std::nullopt;
    try {
      Policy policy = parse_policy(*candidate_.policy());
      // What the file spells out in full would fill every line.
      policy.label = policy.scorer_name + "+" + policy.allocator_name;
      return policy;
    } catch (const UsageError& error) {
      throw DumpError(path, "/ attribute policy", "a policy of laprox", *candidate_.policy(), error.what());
    }
  }

  /// The policy that scores, column statistics and kept sets are those of.
  void choose_policy(const std::string& path) {
    const std::optional<Policy> asked = asked_policy(path), stated = stated_policy(path);
    if (asked && stated && !(*asked == *stated)) {
      throw UsageError(
          fmt::format("{} holds results of the policy {}, but --policy asks for {}; leave --policy out, or correct "
                      "the file's attribute 'policy'",
                      path, to_string(*stated), to_string(*asked)));
    }
    policy_ = asked ? asked : stated;
    if (policy_) return check_policy();
    if (!candidate_.has("scores") && !candidate_.has("kept") && !candidate_.has("column_norms") &&
        !candidate_.has("column_sums"))
      return;
    throw UsageError(
        fmt::format("{}: --policy: of which policy are these the results? Give --policy, or write it into the file's "
                    "root attribute 'policy'",
                    path));
  }

  /// Whether the dump can serve the policy, and the policy can have such results.
  void check_policy() {
    result_.policy = to_string(*policy_);
    const bool kept = candidate_.has("kept");
    check_selection_request(
        info_, {.policies = {*policy_}, .budgets = kept ? candidate_.budgets() : std::vector<BudgetRequest>{}});
    if (policy_->scorer->traits().depends_on_budget && candidate_.has("scores") && candidate_.budgets().size() != 1) {
      candidate_.refuse("scores",
                        "one budget in the root attribute budgets, because the scores of this policy depend on it",
                        fmt::format("{} budgets", candidate_.budgets().size()));
    }
    check_statistics(policy_->scorer->traits().queries.kind);
  }

  /// Column statistics are those of the queries that the policy reads.
  void check_statistics(QueryNeed::Kind kind) const {
    const std::string who = "policy '" + policy_->label + "'";
    if (candidate_.has("column_norms") && (kind == QueryNeed::Kind::none || kind == QueryNeed::Kind::all)) {
      candidate_.refuse("column_norms", "nothing, because " + who + " reads no observation window", "a dataset");
    }
    if (candidate_.has("column_sums") && kind == QueryNeed::Kind::none) {
      candidate_.refuse("column_sums", "nothing, because " + who + " reads no queries", "a dataset");
    }
  }

  void choose_rows() {
    judged_ = policy_ && reads_judged(*policy_);
    rows_ = judged_   ? judging_rows(info_, {})
            : policy_ ? scoring_rows(info_, {*policy_})
                      : info_.rows_between(info_.context_length, info_.context_length);
    const bool scores = candidate_.has("scores") || candidate_.has("kept");
    if (!scores) return;
    for (const BudgetRequest& budget : candidate_.budgets()) {
      budgets_.push_back(resolve(budget, info_).tokens_per_head());
    }
  }

  /// What is asked for, else what the file states.
  std::optional<Precision> stated_precision() const {
    if (options_.precision) return Precision(*options_.precision);
    if (candidate_.precision()) return Precision(*candidate_.precision());
    return std::nullopt;
  }

  Precision precision_of(Index layer, const std::string& dataset) const {
    const Precision stored(candidate_.type(layer, dataset)), precision = stated_precision().value_or(stored);
    if (stored.unit_roundoff() > precision.unit_roundoff()) {
      candidate_.refuse(dataset, fmt::format("numbers that can be assessed in {}", to_string(precision.type())),
                        fmt::format("{}, which is coarser", to_string(stored.type())));
    }
    return precision;
  }

  /// Of the masks: the coarsest of the datasets beside them, unless it is stated.
  Precision precision_of_kept() const {
    if (const auto stated = stated_precision()) return *stated;
    std::optional<Precision> coarsest;
    for (Index layer = 0; layer < static_cast<Index>(info_.layers.size()); ++layer) {
      for (const char* dataset : {"scores", "column_norms", "column_sums", "value_norms", "output"}) {
        if (!candidate_.has(layer, dataset)) continue;
        const Precision precision(candidate_.type(layer, dataset));
        if (!coarsest || precision.unit_roundoff() > coarsest->unit_roundoff()) coarsest = precision;
      }
    }
    return coarsest.value_or(Precision(ElementType::float32));
  }

  ValueCheck& check_of(const std::string& name, const Precision& precision) {
    const bool scores = name == "scores", output = name == "output", of_policy = name != "value_norms" && !output;
    const auto [entry, is_new] = checks_.try_emplace(name);
    if (is_new) {
      entry->second = make_value_check(name, of_policy ? policy_->label : "",
                                       scores   ? "KV head"
                                       : output ? "query"
                                                : "head",
                                       output ? "column" : "token", precision);
    }
    return entry->second;
  }

  void assess_scoring(Index layer) {
    const bool any = candidate_.has(layer, "scores") || candidate_.has(layer, "column_norms") ||
                     candidate_.has(layer, "column_sums") || candidate_.has(layer, "value_norms");
    if (!any && !kept_) return;
    Yardsticks yardsticks(*reference_, dump_.read_layer(layer, rows_, ElementType::float64), judged_,
                          thread_count(options_.threads));
    const Index window = yardsticks.tensors().queries();
    const bool all = policy_ && policy_->scorer->traits().queries.every();
    for (const char* name : {"column_norms", "column_sums", "value_norms"}) {
      const bool of_all = all && std::string_view(name) == "column_sums";
      assess_dataset(yardsticks, name, find_primitive(of_all ? "column_sums of all" : name, window));
    }
    assess_policy(yardsticks);
  }

  void assess_dataset(Yardsticks& yardsticks, const std::string& name, const Primitive& primitive) {
    if (!candidate_.has(yardsticks.layer(), name)) return;
    const Precision precision = precision_of(yardsticks.layer(), name);
    yardsticks.assess(candidate_.read(yardsticks.layer(), name), primitive, precision, check_of(name, precision));
  }

  void assess_policy(Yardsticks& yardsticks) {
    const Index layer = yardsticks.layer();
    const bool scores = candidate_.has(layer, "scores");
    if (!scores && !kept_) return;
    const QueryNeed::Kind needs = policy_->scorer->traits().queries.kind;
    LayerScores expected = yardsticks.expected_scores(*policy_, budgets_);
    if (scores && !policy_->scorer->traits().scores_are_places) {
      const Precision precision = precision_of(layer, "scores");
      const auto plain = yardsticks.plain_scores(*policy_, budgets_, precision);
      const Matrix found = candidate_.read(layer, "scores");
      assess_scores(found, expected, plain, 0, *policy_, precision, yardsticks.weight_error(needs, precision), layer,
                    check_of("scores", precision));
    }
    if (!kept_) return;
    kept_->add_layer(std::move(expected), yardsticks.plain_scores(*policy_, budgets_, *kept_precision_),
                     yardsticks.weight_error(needs, *kept_precision_));
    if (candidate_.has(layer, "kept")) masks_[layer] = candidate_.read_kept(layer);
  }

  /// The queries at the file's output positions lie anywhere among the stored ones.
  void assess_candidate_output(Index layer) {
    const auto& positions = candidate_.output_positions();
    if (positions.empty()) return;
    const DumpInfo::Rows rows = info_.rows_between(positions.front(), positions.back() + 1);
    LayerTensors tensors = dump_.read_layer(layer, rows, ElementType::float64);
    const Precision precision = precision_of(layer, "output");
    set_queries(tensors, copy_queries_at(tensors, positions));
    assess_output(*reference_, tensors, candidate_.read(layer, "output"), precision, thread_count(options_.threads),
                  check_of("output", precision));
  }

  const LayerSource& dump_;
  const DumpInfo& info_;
  const Candidate& candidate_;
  std::unique_ptr<Backend> reference_;
  VerifyOptions options_;
  Verification result_;
  std::optional<Policy> policy_;
  bool judged_ = false;
  DumpInfo::Rows rows_;
  std::vector<Index> budgets_;  ///< tokens per KV head
  std::map<std::string, ValueCheck> checks_;
  std::optional<Precision> kept_precision_;
  std::optional<KeptAssessor> kept_;
  KeptMasks masks_;
};

}  // namespace

Verification verify_candidate(const LayerSource& dump, const Candidate& candidate, const VerifyOptions& options,
                              const Progress& progress) {
  check_own_caches(dump.info());
  return CandidateVerifier(dump, candidate, options).run(progress);
}

}  // namespace laprox
