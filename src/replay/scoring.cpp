#include "replay/scoring.h"

#include <algorithm>

#include "base/exchange.h"
#include "dump/layer_stream.h"
#include "dump/queries.h"
#include "laprox/shares.h"

namespace laprox {

std::vector<Budget> resolve_budgets(const DumpInfo& dump, const SweepOptions& options) {
  std::vector<Budget> budgets;
  for (const BudgetRequest& request : options.budgets) {
    const DecodingBudget budget(request, dump, options.schedule);
    const Index tokens = budget.tokens(dump.context_length);
    budgets.push_back(tokens <= dump.context_length ? resolve(request, dump) : Budget(tokens, dump.total_kv_heads()));
  }
  return budgets;
}

std::vector<Budget> prompt_budgets(const DumpInfo& dump, const SweepOptions& options) {
  std::vector<Budget> budgets;
  for (const Budget& budget : resolve_budgets(dump, options)) {
    const bool fits = budget.tokens_per_head() <= dump.context_length;
    budgets.push_back(fits ? budget : Budget(dump.context_length, budget.heads()));
  }
  return budgets;
}

Scoring::Scoring(const DumpInfo& dump, const SweepOptions& options, const Backend& backend, const Share& share)
    : options_(options),
      backend_(backend),
      oracles_(std::any_of(options.policies.begin(), options.policies.end(), reads_judged)),
      scoring_(scoring_rows(dump, options.policies)),
      read_(scoring_) {
  if (oracles_) {
    judging_ = judging_rows(dump, options);
    read_ = {std::min(scoring_.first, judging_.first), std::max(scoring_.last, judging_.last)};
  }
  const std::vector<Budget> budgets = prompt_budgets(dump, options);
  for (const Policy& policy : options.policies) {
    selectors_.emplace_back(policy, budgets, backend.threads(), dump, share);
  }
  attention_.resize(selectors_.size());
  for (std::size_t p = 0; p < selectors_.size(); ++p) {
    if (sums_attention(p)) attention_[p].resize(dump.layers.size());
  }
}

/// Whether a policy goes on summing the attention that its entries received from the prompt.
bool Scoring::sums_attention(std::size_t policy) const {
  return !options_.schedule.once() && options_.policies[policy].scorer->traits().decoding == Decoding::accumulated;
}

void Scoring::add_to_selectors(const LayerView& layer, ScoringKernels& kernels, bool judged) {
  for (const Selector& selector : selectors_) {
    const ScorerTraits& traits = selector.policy().scorer->traits();
    if (traits.far_distance > 0 && traits.queries.every()) kernels.expect_far_energies(traits.far_distance);
  }
  for (Selector& selector : selectors_) {
    if (reads_judged(selector.policy()) == judged) selector.add_layer(layer, kernels);
  }
}

void Scoring::add_layer(LayerTensors layer) {
  QueryBlock judged;
  if (oracles_) {
    judged = copy_queries(layer, judging_.first - read_.first, judging_.count());
    set_queries(layer, copy_queries(layer, scoring_.first - read_.first, scoring_.count()));
  }
  const auto kernels = backend_.scoring(layer);
  add_to_selectors(LayerView(layer), *kernels, false);
  for (std::size_t p = 0; p < selectors_.size(); ++p) {
    if (sums_attention(p)) attention_[p][layer.layer] = kernels->column_sums();
  }
  if (!oracles_) return;
  set_queries(layer, std::move(judged));
  add_to_selectors(LayerView::of_judged(layer), *backend_.scoring(layer), true);
}

std::vector<Selection> Scoring::finish() {
  std::vector<Selection> selections;
  for (std::size_t p = 0; p < selectors_.size(); ++p) {
    selections.push_back(selectors_[p].finish());
    selections.back().attention = std::move(attention_[p]);
  }
  return selections;
}

std::vector<Selection> select_kept(const LayerSource& dump, const SweepOptions& options, const Backend& backend,
                                   const Progress& progress, Ranks& ranks) {
  const DumpInfo& info = dump.info();
  const Share share = Share::of(ranks, share_layers({&info}, ranks.size())[0]);
  Scoring scoring(info, options, backend, share);
  std::vector<LayerRead> reads;
  for (const Index layer : share.layers) reads.push_back({&dump, layer, scoring.rows()});
  LayerStream layers(std::move(reads), backend, true);
  for (const Index layer : share.layers) {
    ranks.look_out();
    scoring.add_layer(layers.next());
    if (progress) progress(layer, static_cast<Index>(info.layers.size()), "scores");
  }
  return scoring.finish();
}

namespace {

/// Two policies that may keep the same entries at a budget.
struct Pair {
  std::size_t policy, earlier, budget;
};

/// Those whose fingerprints over all ranks are equal.
std::vector<Pair> likely_twins(const std::vector<Selection>& selections, Ranks& ranks) {
  const std::size_t budgets = selections.empty() ? 0 : selections[0].counts.size();
  std::vector<std::uint64_t> prints;
  for (const Selection& selection : selections) {
    for (std::size_t b = 0; b < budgets; ++b) prints.push_back(fingerprint(selection, b));
  }
  prints = sums_over_ranks(ranks, prints);
  std::vector<Pair> pairs;
  for (std::size_t p = 0; p < selections.size(); ++p) {
    for (std::size_t b = 0; b < budgets; ++b) {
      for (std::size_t other = 0; other < p; ++other) {
        if (prints[other * budgets + b] == prints[p * budgets + b]) pairs.push_back({p, other, b});
      }
    }
  }
  return pairs;
}

}  // namespace

std::vector<std::vector<Index>> find_twins(const std::vector<Selection>& selections, Ranks& ranks) {
  std::vector<std::vector<Index>> twins;
  for (const Selection& selection : selections) twins.emplace_back(selection.counts.size(), -1);
  const std::vector<Pair> pairs = likely_twins(selections, ranks);
  std::vector<int> differ;  // [pair]: ranks whose layers show a difference
  for (const Pair& pair : pairs) {
    differ.push_back(keep_the_same(selections[pair.earlier], selections[pair.policy], pair.budget) ? 0 : 1);
  }
  differ = sums_over_ranks(ranks, differ);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    Index& twin = twins[pairs[i].policy][pairs[i].budget];
    if (differ[i] == 0 && twin < 0) twin = static_cast<Index>(pairs[i].earlier);
  }
  return twins;
}

}  // namespace laprox
