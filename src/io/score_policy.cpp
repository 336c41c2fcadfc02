#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "io/candidate_reader.h"
#include "laprox/error.h"
#include "laprox/score_file.h"

namespace laprox {

namespace {

/// Scores that somebody else computed. `meant` is the policy that the file says they are those of, if it does: that one
/// knows which tokens are pinned, and how a ranking comes from scores.
class StoredScores : public Scorer {
 public:
  StoredScores(ScoreTable scores, std::shared_ptr<const Scorer> meant)
      : Scorer(traits_like(meant.get())), scores_(std::move(scores)), meant_(std::move(meant)) {}

  Matrix score(const LayerView& layer, ScoringKernels&) const override {
    return scores_.at(static_cast<std::size_t>(layer.layer()));
  }
  Ranking rank(std::span<const double> scores) const override {
    return meant_ ? meant_->rank(scores) : Scorer::rank(scores);
  }

 private:
  static ScorerTraits traits_like(const Scorer* meant) {
    ScorerTraits traits{.decoding = Decoding::undefined};
    if (meant) traits.pins = meant->traits().pins, traits.ranks_by_score = meant->traits().ranks_by_score;
    return traits;
  }

  ScoreTable scores_;
  std::shared_ptr<const Scorer> meant_;
};

/// Kept tokens that somebody else chose: as scores of 1 and 0, over which the whole model's best are exactly these.
class StoredMasks : public Scorer {
 public:
  /// masks[budget][layer]; tokens: the budgets, per KV head.
  StoredMasks(std::vector<ScoreTable> masks, std::vector<Index> tokens)
      : Scorer({.depends_on_budget = true, .scores_are_places = true, .decoding = Decoding::undefined}),
        masks_(std::move(masks)),
        tokens_(std::move(tokens)) {}

  std::vector<Matrix> score_each(std::span<const Index> budgets, const LayerView& layer,
                                 ScoringKernels&) const override {
    std::vector<Matrix> scores;
    for (const Index budget : budgets) {
      const auto found = std::find(tokens_.begin(), tokens_.end(), budget);
      require(found != tokens_.end(), "a mask for each budget");
      scores.push_back(
          masks_[static_cast<std::size_t>(found - tokens_.begin())][static_cast<std::size_t>(layer.layer())]);
    }
    return scores;
  }

 private:
  std::vector<ScoreTable> masks_;
  std::vector<Index> tokens_;
};

/// "mine.h5+ada:floor=0.3" is the file mine.h5, the label mine+ada:floor=0.3. A folder's name may hold a plus too.
struct Spelling {
  explicit Spelling(const std::string& text) {
    // A slash behind "+allocator:" separates numbers, not folders: mine.h5+per-layer:shares=2/1.
    const std::size_t options = text.find(':', text.find('+')), slash = text.rfind('/', options);
    const std::size_t plus = text.find('+', slash == std::string::npos ? 0 : slash);
    file = text.substr(0, plus);
    if (plus != std::string::npos) split = text.substr(plus);
    label = kebab(file.stem().string());
    std::replace_if(
        label.begin(), label.end(), [](char c) { return c == ':' || c == ','; }, '-');
  }
  std::filesystem::path file;
  std::string label, split;
};

using Layers = std::optional<std::vector<Index>>;  ///< nothing: all

bool contains(const Layers& layers, Index layer) {
  return !layers || std::find(layers->begin(), layers->end(), layer) != layers->end();
}

std::shared_ptr<const Scorer> stored_scores(const io::CandidateReader& file, const DumpInfo& dump,
                                            const std::shared_ptr<const Scorer>& meant, const Layers& layers) {
  ScoreTable scores;
  for (Index layer = 0; layer < static_cast<Index>(dump.layers.size()); ++layer) {
    if (!file.has(layer, "scores")) {
      file.refuse("scores", "scores of every layer of the dump", fmt::format("none of layer {}", layer));
    }
    Matrix of_layer = file.read_finite(layer, "scores");
    scores.push_back(contains(layers, layer) ? std::move(of_layer) : Matrix());
  }
  return std::make_shared<StoredScores>(std::move(scores), meant);
}

std::shared_ptr<const Scorer> stored_masks(const io::CandidateReader& file, const std::string& path,
                                           const DumpInfo& dump, const std::vector<BudgetRequest>& budgets,
                                           const Layers& layers) {
  std::vector<ScoreTable> masks(file.budgets().size());
  std::vector<double> totals(masks.size(), 0.0);
  for (Index layer = 0; layer < static_cast<Index>(dump.layers.size()); ++layer) {
    if (!file.has(layer, "kept")) {
      file.refuse("kept", "kept tokens of every layer of the dump", fmt::format("none of layer {}", layer));
    }
    const auto kept = file.read_kept(layer);
    for (std::size_t b = 0; b < kept.size(); ++b) {
      Matrix& mask = masks[b].emplace_back(static_cast<Index>(kept[b].size()), dump.context_length);
      for (Index head = 0; head < mask.rows(); ++head) {
        const auto& tokens = kept[b][head];
        for (Index token = 0; token < mask.cols(); ++token) mask(head, token) = tokens[token];
      }
      totals[b] += mask.sum();
      if (!contains(layers, layer)) mask = Matrix();
    }
  }
  std::vector<Index> tokens;
  for (std::size_t b = 0; b < masks.size(); ++b) {
    const Budget budget = resolve(file.budgets()[b], dump);
    if (totals[b] != static_cast<double>(budget.pairs())) {
      file.refuse("kept",
                  fmt::format("{} kept entries in all layers at the budget {}", budget.pairs(), file.budgets()[b].text),
                  fmt::format("{}", totals[b]));
    }
    tokens.push_back(budget.tokens_per_head());
  }
  for (const BudgetRequest& request : budgets) {
    if (std::find(tokens.begin(), tokens.end(), resolve(request, dump).tokens_per_head()) != tokens.end()) continue;
    std::vector<std::string> labels;
    for (const BudgetRequest& stored : file.budgets()) labels.push_back(stored.text);
    throw UsageError(
        fmt::format("{}: holds kept tokens at the budgets {}, but no scores, so that there is nothing for "
                    "the budget {}; store scores, or ask for these budgets",
                    path, join(labels, ", "), request.text));
  }
  return std::make_shared<StoredMasks>(std::move(masks), std::move(tokens));
}

}  // namespace

Policy read_score_policy(const std::string& text, const DumpReader& dump, const std::vector<BudgetRequest>& budgets,
                         const std::optional<std::vector<Index>>& layers) {
  const Spelling spelling(text);
  const io::CandidateReader file(spelling.file, dump);
  if (file.has("scores")) {
    std::shared_ptr<const Scorer> meant;
    std::string split = "head";
    if (file.policy()) {
      const Policy policy = parse_policy(*file.policy());
      meant = policy.scorer;
      if (meant->traits().depends_on_budget) {
        throw UsageError(
            fmt::format("{}: the scores of {} depend on the budget, and the file has one for all; store "
                        "kept tokens instead",
                        spelling.file.string(), policy.scorer_name));
      }
      split = policy.allocator_name;
      std::vector<std::string> pairs;
      for (const auto& [name, value] : policy.allocator_options.spelled_out()) pairs.push_back(name + "=" + value);
      if (!pairs.empty()) split = fmt::format("{}:{}", split, join(pairs, ","));
    }
    return compose_policy(spelling.label + spelling.split, stored_scores(file, dump.info(), meant, layers), split);
  }
  if (!file.has("kept")) file.refuse("scores", "scores, or kept tokens", "neither");
  if (!spelling.split.empty()) {
    throw UsageError(fmt::format("{}: kept tokens say themselves how the budget is split; leave '{}' out",
                                 spelling.file.string(), spelling.split));
  }
  return compose_policy(spelling.label, stored_masks(file, spelling.file.string(), dump.info(), budgets, layers),
                        "global:normalize=false");
}

}  // namespace laprox
