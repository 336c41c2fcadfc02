#include "replay/decoding.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>

#include "laprox/error.h"
#include "replay/held_layer.h"
#include "replay/selection.h"

namespace laprox {

namespace {

using Held = std::vector<std::vector<std::int32_t>>;  ///< [kv_head]: entries, ascending

[[noreturn]] void refuse(const DumpInfo& dump, const SweepOptions& options, const std::string& why) {
  throw UsageError(fmt::format("{}: --schedule {}: {}", dump.path.string(), to_string(options.schedule), why));
}

/// What the cut after the prompt leaves.
Held held_after_prompt(const Selection& selection, std::size_t budget, std::size_t layer) {
  Held held;
  for (std::size_t head = 0; head < selection.counts[budget][layer].size(); ++head) {
    const Ranking& ranking = selection.rankings(budget)[layer][head];
    held.emplace_back(ranking.begin(), ranking.begin() + selection.counts[budget][layer][head]);
    std::sort(held.back().begin(), held.back().end());
  }
  return held;
}

/// Evicts the entries at these places (ascending) once `seen` tokens have been processed.
void evict(std::vector<std::int32_t>& held, std::span<const std::int32_t> places, Index seen, Lifetimes& gone) {
  std::size_t next = 0, left = 0;
  for (std::size_t place = 0; place < held.size(); ++place) {
    if (next < places.size() && static_cast<std::size_t>(places[next]) == place) {
      gone[held[place]] = static_cast<std::int32_t>(seen);
      ++next;
    } else {
      held[left++] = held[place];
    }
  }
  held.resize(left);
}

/// A layer's caches, to be scored: all KV heads together, or each by itself once they hold unequally many entries,
/// which happens where a sliding window lets entries leave by age. (TOVA's scores are those of all heads together; its
/// heads hold the same tokens.)
class HeldHeads {
 public:
  HeldHeads(const LayerTensors& layer, const Backend& backend)
      : layer_(layer), together_(layer, 0, layer.geometry.kv_heads, backend) {
    if (layer.attention.first_visible(layer.tokens - 1) == 0) return;
    for (Index head = 0; head < layer.geometry.kv_heads; ++head) apart_.emplace_back(layer, head, 1, backend);
  }

  const LayerTensors& layer() const { return layer_; }

  /// Calls visit(part, its first KV head, how many).
  template <class Visit>
  void each_part(const Held& held, const Visit& visit) {
    const auto differs = [&](const auto& tokens) { return tokens.size() != held[0].size(); };
    if (std::none_of(held.begin(), held.end(), differs)) return visit(together_, 0, held.size());
    for (std::size_t head = 0; head < held.size(); ++head) visit(apart_.at(head), head, 1);
  }

 private:
  const LayerTensors& layer_;
  HeldLayer together_;
  std::deque<HeldLayer> apart_;
};

/// Drops what has left by age once `seen` tokens have been processed.
void drop_aged(std::vector<std::int32_t>& held, const Lifetimes& gone, Index seen) {
  const auto first = std::find_if(held.begin(), held.end(), [&](std::int32_t token) { return gone[token] > seen; });
  held.erase(held.begin(), first);
}

/// A policy that scores anew at every cut what its caches hold.
std::vector<Lifetimes> replay_rescored(const Policy& policy, const DecodingBudget& budget, const Schedule& schedule,
                                       HeldHeads& caches, Held held) {
  const LayerTensors& layer = caches.layer();
  std::vector<Lifetimes> lifetimes;
  for (const auto& tokens : held) {
    lifetimes.push_back(
        lifetimes_after_prompt(tokens, layer.context_length, layer.tokens, layer.attention.sliding_window));
  }
  const Scorer& scorer = *policy.scorer;
  if (scorer.traits().keeps_everything) return lifetimes;
  const auto cut = [&](HeldLayer& part, std::size_t first, std::size_t heads, Index position) {
    const Index entries = static_cast<Index>(held[first].size()), count = budget.tokens(position + 1);
    if (entries <= count) return;
    part.hold(std::span(held).subspan(first, heads), position, std::min(scorer.traits().queries.window, entries));
    const auto kernels = part.kernels();
    const Matrix scores = layer_scores(scorer, policy.label, {&count, 1}, part.view(), *kernels).at(0);
    for (std::size_t head = 0; head < heads; ++head) {
      const std::span row(&scores(static_cast<Index>(head), 0), static_cast<std::size_t>(entries));
      evict(held[first + head], scorer.evict(row, count), position + 1, lifetimes[first + head]);
    }
  };
  const Index steps = layer.tokens - layer.context_length;
  for (Index step = 0; step + 1 < steps; ++step) {  // no query would feel a cut after the last one
    const Index position = layer.context_length + step;
    for (auto& tokens : held) tokens.push_back(static_cast<std::int32_t>(position));
    if (!schedule.cuts_after(step)) continue;
    for (std::size_t head = 0; head < held.size(); ++head) drop_aged(held[head], lifetimes[head], position + 1);
    caches.each_part(held,
                     [&](HeldLayer& part, std::size_t first, std::size_t heads) { cut(part, first, heads, position); });
  }
  return lifetimes;
}

/// A policy that sums attention at every step.
std::vector<Lifetimes> replay_accumulated(const Policy& policy, const DecodingBudget& budget, const Schedule& schedule,
                                          const LayerTensors& layer, const Held& held, const Matrix& sums,
                                          const Backend& backend) {
  const auto evict = [&](const Matrix& of_entries, Index seen) -> std::vector<std::int32_t> {
    const Index count = budget.tokens(seen);
    if (of_entries.cols() <= count) return {};
    return policy.scorer->evict(policy.scorer->score_sums(of_entries), count);
  };
  return backend.accumulate(layer, {sums, held, schedule, evict});
}

}  // namespace

void check_schedule(const DumpInfo& dump, const SweepOptions& options) {
  if (options.schedule.once()) return;
  if (options.mode == SoftmaxMode::truncated) {
    refuse(dump, options, "the truncated softmax and its bound belong to one eviction; leave --softmax truncated out");
  }
  if (options.queries == JudgedQueries::window) {
    refuse(dump, options, "decoded queries judge; leave --queries window out");
  }
  const Index decoded = dump.tokens - dump.context_length;
  const Index stored = dump.rows_between(dump.context_length, dump.tokens).count();
  if (decoded == 0 || stored != decoded) {
    refuse(
        dump, options,
        fmt::format("the query of every decoded token is needed, but {} of {} are stored; export the dump again with "
                    "more decoded tokens (laprox-dump --decode N)",
                    stored, decoded));
  }
  if (dump.shares_caches()) {
    refuse(dump, options, "some layers read another layer's cache; schedules are not defined for shared caches");
  }
}

void check_schedule(const DumpInfo& dump, const Policy& policy, const SweepOptions& options) {
  if (options.schedule.once()) return;
  const ScorerTraits& traits = policy.scorer->traits();
  const auto refuse_policy = [&](const std::string& why) {
    refuse(dump, options, fmt::format("policy '{}' {}", policy.label, why));
  };
  const bool needs_prompt = traits.queries.kind == QueryNeed::Kind::all && traits.decoding != Decoding::accumulated;
  if (traits.decoding == Decoding::undefined || needs_prompt || reads_judged(policy) || traits.far_distance > 0 ||
      traits.undoes_rope || !traits.spends_exactly) {
    refuse_policy("is defined after a prompt only; leave it out");
  }
  if (policy.allocator_name != "head" && !traits.keeps_everything) {
    refuse_policy(
        fmt::format("splits its budget over heads by '{}', but while decoding every KV head has the same one; "
                    "write {}+head",
                    policy.allocator_name, policy.scorer_name));
  }
  const Index window = traits.queries.kind == QueryNeed::Kind::window ? traits.queries.window : 0;
  if (window > std::max(traits.pins.last, options.schedule.interval)) {
    refuse_policy(fmt::format(
        "reads the last {} queries, but the cache surely holds the keys of only the last {} tokens at a cut; "
        "pin {} tokens, or cut every {} tokens or more",
        window, std::max(traits.pins.last, options.schedule.interval), window, window));
  }
}

bool cuts_while_decoding(const DumpInfo& dump, const Schedule& schedule) {
  return !schedule.once() && schedule.interval < dump.tokens - dump.context_length;
}

LayerLifetimes replay_decoding(const LayerTensors& layer, std::size_t place, const DumpInfo& dump,
                               const SweepOptions& options, const std::vector<Selection>& selections,
                               const Backend& backend) {
  LayerLifetimes lifetimes(selections.size());
  HeldHeads caches(layer, backend);
  for (std::size_t p = 0; p < selections.size(); ++p) {
    const Policy& policy = options.policies[p];
    for (std::size_t b = 0; b < options.budgets.size(); ++b) {
      const DecodingBudget budget(options.budgets[b], dump, options.schedule);
      Held held = held_after_prompt(selections[p], b, place);
      lifetimes[p].push_back(policy.scorer->traits().decoding == Decoding::accumulated
                                 ? replay_accumulated(policy, budget, options.schedule, layer, held,
                                                      selections[p].attention.at(place), backend)
                                 : replay_rescored(policy, budget, options.schedule, caches, std::move(held)));
    }
  }
  return lifetimes;
}

}  // namespace laprox
