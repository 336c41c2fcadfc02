#include "verify/kept.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "laprox/error.h"
#include "verify/assess.h"

namespace laprox::verify {

namespace {

constexpr Index kNear = 32;  ///< tokens on either side of a cut whose plain errors count there
constexpr double kFloor = 1e-5;
constexpr double kTerms = 64;  ///< how many lost terms a score may be short of

enum PartIndex : std::size_t { kTokens, kCounts, kBudget };

}  // namespace

/// One KV head at one budget: what the reference and the candidate keep of it.
struct KeptAssessor::Head {
  Index layer, kv_head;
  std::size_t order;                       ///< which of the scores serves the budget
  const Ranking& ranking;                  ///< the reference's
  Index expected;                          ///< how many of it the reference keeps
  const std::vector<std::uint8_t>& found;  ///< [token]
  Index count;                             ///< how many of them are kept
  double cut, tolerance;                   ///< at `count` tokens
};

KeptMasks masks_of(const Selection& selection, Index context_length) {
  KeptMasks masks;
  for (std::size_t b = 0; b < selection.counts.size(); ++b) {
    for (std::size_t layer = 0; layer < selection.counts[b].size(); ++layer) {
      auto& heads = masks[static_cast<Index>(layer)].emplace_back();
      for (std::size_t head = 0; head < selection.counts[b][layer].size(); ++head) {
        auto& mask = heads.emplace_back(static_cast<std::size_t>(context_length), std::uint8_t{0});
        const Ranking& ranking = selection.rankings(b)[layer][head];
        for (Index n = 0; n < selection.counts[b][layer][head]; ++n) {
          mask[ranking[n]] = 1;
        }
      }
    }
  }
  return masks;
}

KeptAssessor::KeptAssessor(const Policy& policy, const std::vector<BudgetRequest>& budgets, const DumpInfo& dump,
                           const Precision& precision, Subject subject)
    : policy_(policy), precision_(precision), subject_(subject), context_(dump.context_length) {
  for (const BudgetRequest& budget : budgets) {
    labels_.push_back(budget.text);
    budgets_.push_back(resolve(budget, dump));
  }
}

void KeptAssessor::add_layer(LayerScores expected, std::vector<std::optional<LayerScores>> plain, double weight_error) {
  weight_errors_.push_back(weight_error);
  expected_.push_back(std::move(expected));
  plain_.push_back(std::move(plain));
}

Selection KeptAssessor::select(const std::vector<LayerScores>& layers) const {
  Selector selector(policy_, budgets_, 1);
  for (const LayerScores& layer : layers) selector.add_layer(layer);
  return selector.finish();
}

/// The selections of those programs that stay in range in every layer.
std::vector<Selection> KeptAssessor::plain_selections() const {
  std::vector<Selection> selections;
  for (std::size_t program = 0; !plain_.empty() && program < plain_[0].size(); ++program) {
    std::vector<LayerScores> layers;
    for (const auto& layer : plain_) {
      if (layer[program]) layers.push_back(*layer[program]);
    }
    if (layers.size() == plain_.size()) selections.push_back(select(layers));
  }
  return selections;
}

/// See the class: what a backend is excused, at any budget.
bool KeptAssessor::excuses(const Selection& selection, const std::vector<Selection>& plain) const {
  const Scorer& scorer = *policy_.scorer;
  if (subject_ != Subject::backend || (!scorer.traits().scores_are_places && !scorer.traits().scores_jump))
    return false;
  const KeptMasks expected = masks_of(selection, context_);
  return plain.empty() || std::any_of(plain.begin(), plain.end(),
                                      [&](const Selection& each) { return masks_of(each, context_) != expected; });
}

std::vector<KeptCheck> KeptAssessor::assess(const KeptMasks& found) const {
  const Selection expected = select(expected_);
  const std::vector<Selection> plain = plain_selections();
  std::vector<KeptCheck> checks;
  const bool excused = excuses(expected, plain);
  for (std::size_t b = 0; b < budgets_.size(); ++b) {
    checks.push_back(assess_budget(b, expected, plain, excused, found));
  }
  return checks;
}

KeptCheck KeptAssessor::assess_budget(std::size_t budget, const Selection& selection,
                                      const std::vector<Selection>& plain, bool excused, const KeptMasks& found) const {
  KeptCheck check{policy_.label, labels_[budget], precision_.type(), 0, 0, {}};
  for (const char* part : {"tokens", "counts", "budget"}) check.parts.push_back({.name = part});
  std::vector<Head> heads;
  Index kept = 0;
  for (const auto& [layer, masks] : found) {
    for (std::size_t head = 0; head < masks[budget].size(); ++head) {
      heads.push_back(head_of(budget, selection, layer, static_cast<Index>(head), masks[budget][head]));
      assess_tokens(heads.back(), check);
      kept += heads.back().count;
    }
  }
  VerdictPart& tokens = check.parts[kTokens];
  // A token exchanged for another one counts twice.
  const double exchanged = static_cast<double>(check.differences) / 2;
  if (excused && exchanged <= kCap * static_cast<double>(kept)) {
    check.ties += static_cast<Index>(tokens.measured);
    tokens = {.name = tokens.name};
  } else {
    assess_counts(budget, heads, selection, plain, check);
  }
  if (found.size() == expected_.size()) {
    VerdictPart& part = check.parts[kBudget];
    part.measured = static_cast<double>(kept);
    part.allowed = static_cast<double>(total(selection.counts[budget]));
    part.excess = part.measured == part.allowed ? 0 : std::numeric_limits<double>::infinity();
    part.passed = part.measured == part.allowed;
  }
  return check;
}

KeptAssessor::Head KeptAssessor::head_of(std::size_t budget, const Selection& selection, Index layer, Index kv_head,
                                         const std::vector<std::uint8_t>& mask) const {
  const auto l = static_cast<std::size_t>(layer), h = static_cast<std::size_t>(kv_head);
  const std::size_t order = selection.orders.size() == 1 ? 0 : budget;
  Head head{layer, kv_head, order, selection.orders[order][l][h], selection.counts[budget][l][h], mask, 0, 0, 0};
  head.count = static_cast<Index>(std::count(mask.begin(), mask.end(), std::uint8_t{1}));

  const auto scores = expected_[l].scores[order].row(kv_head);
  const Pins pins = policy_.scorer->traits().pins;
  double error = 0, size = 0;
  Index beside = 0;
  for (Index rank = std::max<Index>(0, head.count - kNear); rank < std::min(context_, head.count + kNear); ++rank) {
    const std::int32_t token = head.ranking[rank];
    if (pins.contains(token, context_)) continue;
    error = std::max(error, plain_error(head, token));
    if (rank < head.count - 1 || rank > head.count) continue;
    head.cut += scores[token];
    size = std::max(size, std::abs(scores[token]));
    ++beside;
  }
  if (beside > 0) head.cut /= static_cast<double>(beside);
  // Each score is a sum of products that may have underflowed.
  head.tolerance = tolerance(layer, error, size) + kTerms * precision_.underflow() * scores.cwiseAbs().maxCoeff();
  return head;
}

/// The largest error of a plain evaluation at a token; infinite where there is none.
double KeptAssessor::plain_error(const Head& head, Index token) const {
  const auto layer = static_cast<std::size_t>(head.layer);
  const double expected = expected_[layer].scores[head.order](head.kv_head, token);
  double error = -1;
  for (const auto& plain : plain_[layer]) {
    if (plain) error = std::max(error, std::abs(plain->scores[head.order](head.kv_head, token) - expected));
  }
  return error < 0 ? std::numeric_limits<double>::infinity() : error;
}

double KeptAssessor::tolerance(Index layer, double plain_error, double size) const {
  if (policy_.scorer->traits().scores_are_places) return std::isfinite(plain_error) ? 2 * plain_error : 0;
  return std::min(kCap * size, 2 * plain_error + precision_.ulp(size) + weight_errors_[layer] * size) + kFloor * size;
}

/// The tokens that the policy would keep if every score were off by the tolerance in the found set's favour.
void KeptAssessor::assess_tokens(const Head& head, KeptCheck& check) const {
  const auto context = static_cast<std::size_t>(context_);
  const auto scores = expected_[head.layer].scores[head.order].row(head.kv_head);
  const bool places = policy_.scorer->traits().scores_are_places;
  std::vector<double> favourable(context);
  std::vector<std::uint8_t> expected(context, 0), allowed(context, 0);
  // Equal scores stay equal unless they are moved, however small the tolerance: the least that moves them.
  for (std::size_t i = 0; i < context; ++i) {
    const double score = scores[static_cast<Index>(i)];
    const double least = std::nextafter(std::abs(score), std::numeric_limits<double>::infinity()) - std::abs(score);
    const double shift =
        std::max(places ? tolerance(head.layer, plain_error(head, static_cast<Index>(i)), 0) : head.tolerance, least);
    favourable[i] = head.found[i] ? score + shift : score - shift;
  }
  const Ranking ranking = policy_.scorer->rank(favourable);
  for (Index n = 0; n < head.count; ++n) allowed[ranking[n]] = 1;
  for (Index n = 0; n < head.count; ++n) {
    expected[head.ranking[n]] = 1;
  }
  const Pins pins = policy_.scorer->traits().pins;
  for (std::size_t i = 0; i < context; ++i) {
    if (head.found[i] == expected[i]) continue;
    ++check.differences;
    if (head.found[i] == allowed[i]) {
      ++check.ties;
      continue;
    }
    VerdictPart& part = check.parts[kTokens];
    part.measured += 1;
    const auto token = static_cast<Index>(i);
    const double distance = pins.contains(token, context_) ? std::numeric_limits<double>::infinity()
                                                           : std::abs(scores[token] - head.cut) / head.tolerance;
    part.passed = false;
    if (!(distance > part.excess)) continue;
    part.excess = distance;
    part.layer = head.layer;
    part.row = head.kv_head;
    part.column = token;
  }
}

void KeptAssessor::assess_counts(std::size_t budget, const std::vector<Head>& heads, const Selection& selection,
                                 const std::vector<Selection>& plain, KeptCheck& check) const {
  const bool differ = std::any_of(heads.begin(), heads.end(), [](const Head& h) { return h.count != h.expected; });
  if (!differ) return;
  const HeadCounts favourable = favourable_counts(budget, heads);
  for (const Head& head : heads) {
    const auto l = static_cast<std::size_t>(head.layer), h = static_cast<std::size_t>(head.kv_head);
    const Index more = head.count - head.expected, reach = favourable[l][h] - head.expected;
    Index plain_more = 0;
    for (const Selection& each : plain) {
      plain_more = std::max(plain_more, std::abs(each.counts[budget][l][h] - selection.counts[budget][l][h]));
    }
    const bool reached = more >= 0 ? more <= reach : more >= reach;
    if (more == 0 || reached || std::abs(more) <= 2 * plain_more) continue;
    VerdictPart& part = check.parts[kCounts];
    part.measured += 1;
    part.passed = false;
    if (static_cast<double>(std::abs(more)) <= part.excess) continue;
    part.excess = static_cast<double>(std::abs(more));
    part.layer = head.layer;
    part.row = head.kv_head;
  }
}

/// How many tokens each head keeps if the scores around its cut are off by the tolerance towards the count that was
/// found.
HeadCounts KeptAssessor::favourable_counts(std::size_t budget, const std::vector<Head>& heads) const {
  std::vector<LayerScores> moved = expected_;
  for (const Head& head : heads) {
    if (head.count == head.expected) continue;
    auto scores = moved[head.layer].scores[head.order].row(head.kv_head);
    const double shift = head.count > head.expected ? head.tolerance : -head.tolerance;
    const auto [least, most] = std::minmax(head.count, head.expected);
    for (Index rank = std::max<Index>(0, least - kNear); rank < std::min(context_, most + kNear); ++rank) {
      scores[head.ranking[rank]] += shift;
    }
  }
  return select(moved).counts[budget];
}

}  // namespace laprox::verify
