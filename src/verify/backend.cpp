#include <fmt/format.h>

#include <algorithm>

#include "base/parallel.h"
#include "dump/layer_stream.h"
#include "laprox/methods.h"
#include "verify/kept.h"
#include "verify/yardsticks.h"

namespace laprox {

namespace {

using namespace verify;

constexpr Index kWindow = 32;  ///< of the primitives that have one

/// A policy under test: the scores that the backend gives, and the selection that they make.
struct PolicyTest {
  PolicyTest(Policy tested, std::vector<BudgetRequest> labels, const DumpInfo& dump, const Precision& precision)
      : policy(std::make_unique<Policy>(std::move(tested))),
        requests(std::move(labels)),
        assessor(*policy, requests, dump, precision, KeptAssessor::Subject::backend),
        check(make_value_check("scores", policy->label, "KV head", "token", precision)) {
    std::vector<Budget> budgets;
    for (const BudgetRequest& request : requests) budgets.push_back(resolve(request, dump));
    for (const Budget& budget : budgets) tokens.push_back(budget.tokens_per_head());
    selector = std::make_unique<Selector>(*policy, budgets, 1);
  }

  void add_layer(Yardsticks& yardsticks, const LayerView& view, ScoringKernels& kernels, const Precision& precision) {
    LayerScores expected = yardsticks.expected_scores(*policy, tokens);
    auto plain = yardsticks.plain_scores(*policy, tokens, precision);
    const double weight_error = yardsticks.weight_error(policy->scorer->traits().queries.kind, precision);
    const LayerScores found = unchecked_score_layer(*policy, tokens, view, kernels);
    for (std::size_t order = 0; order < found.scores.size(); ++order) {
      if (!policy->scorer->traits().scores_are_places) {
        assess_scores(found.scores[order], expected, plain, order, *policy, precision, weight_error, yardsticks.layer(),
                      check);
      }
      jumps = jumps || (policy->scorer->traits().scores_jump && jumps_elsewhere(expected, plain, order));
      finite = finite && found.scores[order].allFinite();
    }
    if (finite) selector->add_layer(found);
    assessor.add_layer(std::move(expected), std::move(plain), weight_error);
  }

  std::unique_ptr<Policy> policy;  ///< its address stays
  std::vector<BudgetRequest> requests;
  std::vector<Index> tokens;
  std::unique_ptr<Selector> selector;
  KeptAssessor assessor;
  ValueCheck check;
  bool finite = true;
  bool jumps = false;  ///< at tokens that depend on roundings
};

/// Why the dump cannot serve something, without the dump's name, which the reader knows.
std::string reason(const UsageError& error, const DumpInfo& dump) {
  const std::string text = error.what(), prefix = dump.path.string() + ": ";
  return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
}

class BackendVerifier {
 public:
  BackendVerifier(const LayerSource& dump, const Backend& backend, const VerifyOptions& options)
      : dump_(dump),
        info_(dump.info()),
        backend_(backend),
        reference_(make_reference_backend()),
        // A backend that takes half types computes with them as they are.
        precision_(options.precision.value_or(tensor_type(backend, dump.info().layers[0]))),
        threads_(thread_count(options.threads)) {
    result_.subject = fmt::format("backend {} ({})", backend.name(), backend.device());
    choose_policies(options);
    choose_primitives();
    choose_output();
  }

  Verification run(const Progress& progress) {
    const Index count = static_cast<Index>(info_.layers.size());
    for (Index layer = 0; layer < count; ++layer) {
      score_layer_of(layer, scoring_, false);
      if (oracles()) score_layer_of(layer, judging_rows(info_, {}), true);
      if (output_.count() > 0) assess_layer_output(layer);
      if (progress) progress(layer, count, "verify");
    }
    return finish();
  }

 private:
  bool oracles() const {
    return std::any_of(policies_.begin(), policies_.end(), [](const PolicyTest& t) { return reads_judged(*t.policy); });
  }

  void choose_policies(const VerifyOptions& options) {
    std::vector<Policy> policies = options.policies;
    if (policies.empty()) {
      for (const ScorerInfo& scorer : scorers()) policies.push_back(parse_policy(scorer.name));
      for (const Method& method : methods()) policies.push_back(parse_policy(method.name));
    }
    for (Policy& policy : policies) choose_policy(std::move(policy), options.budgets);
  }

  void skip(const std::string& name, const UsageError& error) {
    result_.skipped.push_back({name, reason(error, info_)});
  }

  /// Takes the policy with those budgets that the dump can serve; the others are listed as skipped.
  void choose_policy(Policy policy, const std::vector<BudgetRequest>& budgets) {
    std::vector<BudgetRequest> served;
    try {
      if (policy.scorer->traits().longest_context < info_.context_length) {
        throw UsageError(
            fmt::format("the context of {} tokens is longer than the {} that it can score in reasonable time",
                        info_.context_length, policy.scorer->traits().longest_context));
      }
      check_selection_request(info_, {.policies = {policy}, .budgets = {}});
    } catch (const UsageError& error) {
      skip(policy.label, error);
      return;
    }
    for (const BudgetRequest& budget : budgets) {
      try {
        check_selection_request(info_, {.policies = {policy}, .budgets = {budget}});
        served.push_back(budget);
      } catch (const UsageError& error) {
        skip(fmt::format("{} at {}", policy.label, budget.text), error);
      }
    }
    if (served.empty() && policy.scorer->traits().depends_on_budget) return;
    policies_.emplace_back(std::move(policy), std::move(served), info_, precision_);
  }

  void choose_primitives() {
    std::vector<Policy> policies;
    for (const PolicyTest& test : policies_) policies.push_back(*test.policy);
    scoring_ = scoring_rows(info_, policies);
    window_ = std::min(kWindow, info_.context_length);
    for (const Primitive& primitive : primitives(window_)) {
      try {
        const std::string who = fmt::format("the primitive '{}'", primitive.name);
        DumpInfo::Rows rows = scoring_;
        if (primitive.needs == QueryNeed::Kind::window) rows = info_.window_rows(window_, who);
        if (primitive.needs == QueryNeed::Kind::all) rows = info_.prompt_rows(who);
        scoring_.first = std::min(scoring_.first, rows.first);
        primitives_.push_back(primitive);
        const char* columns = primitive.rows_per_head > 1 ? "column" : "token";
        primitive_checks_.push_back(make_value_check(primitive.name, "", primitive.row, columns, precision_));
      } catch (const UsageError& error) {
        skip(primitive.name, error);
      }
    }
  }

  void choose_output() {
    output_ = info_.rows_between(info_.context_length, info_.tokens);
    if (output_.count() > 0) return;
    try {
      output_ = info_.window_rows(window_, "the exact output");
    } catch (const UsageError& error) {
      skip("output", error);
    }
  }

  void score_layer_of(Index layer, DumpInfo::Rows rows, bool judged) {
    Yardsticks yardsticks(*reference_, dump_.read_layer(layer, rows, ElementType::float64), judged, threads_);
    const LayerTensors tensors = read_for(backend_, dump_, layer, rows);
    const LayerView view = judged ? LayerView::of_judged(tensors) : LayerView(tensors);
    const auto kernels = backend_.scoring(tensors);
    for (std::size_t i = 0; !judged && i < primitives_.size(); ++i) {
      yardsticks.assess(primitives_[i].compute(view, *kernels), primitives_[i], precision_, primitive_checks_[i]);
    }
    for (PolicyTest& test : policies_) {
      if (reads_judged(*test.policy) == judged) test.add_layer(yardsticks, view, *kernels, precision_);
    }
  }

  void assess_layer_output(Index layer) {
    const LayerTensors tensors = read_for(backend_, dump_, layer, output_);
    const Matrix found = backend_.layer_errors(tensors, {}, SoftmaxMode::renormalized).exact.output;
    assess_output(*reference_, dump_.read_layer(layer, output_, ElementType::float64), found, precision_, threads_,
                  output_check_);
  }

  Verification finish() {
    result_.values = std::move(primitive_checks_);
    if (output_.count() > 0) result_.values.push_back(std::move(output_check_));
    for (PolicyTest& test : policies_) {
      if (test.policy->scorer->traits().scores_are_places) {
        result_.skipped.push_back({"scores " + test.policy->label, kPlaces});
      } else if (test.jumps && test.finite && !test.check.passed()) {
        result_.skipped.push_back({"scores " + test.policy->label, kJumps});
      } else {
        result_.values.push_back(test.check);
      }
      if (!test.finite) {
        result_.skipped.push_back({test.policy->label + " kept", "its scores are not all finite"});
        continue;
      }
      const Selection selection = test.selector->finish();
      for (KeptCheck& check : test.assessor.assess(masks_of(selection, info_.context_length))) {
        result_.kept.push_back(std::move(check));
      }
    }
    return std::move(result_);
  }

  const LayerSource& dump_;
  const DumpInfo& info_;
  const Backend& backend_;
  std::unique_ptr<Backend> reference_;
  Precision precision_;
  int threads_;
  Verification result_;
  std::vector<PolicyTest> policies_;
  std::vector<Primitive> primitives_;
  std::vector<ValueCheck> primitive_checks_;
  ValueCheck output_check_ = make_value_check("output", "", "query", "column", precision_);
  DumpInfo::Rows scoring_, output_;
  Index window_ = 0;
};

}  // namespace

Verification verify_backend(const LayerSource& dump, const Backend& backend, const VerifyOptions& options,
                            const Progress& progress) {
  check_own_caches(dump.info());
  return BackendVerifier(dump, backend, options).run(progress);
}

}  // namespace laprox
