#include "laprox/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>
#include <memory>

#include "base/exchange.h"
#include "dump/layer_stream.h"
#include "laprox/error.h"
#include "laprox/shares.h"
#include "replay/decoding.h"
#include "replay/dump_replay.h"

namespace laprox {

namespace {

void check_pins(const DumpInfo& dump, const Policy& policy, const BudgetRequest& request, const Budget& budget) {
  const Index tokens = budget.tokens_per_head();
  const Index pinned = policy.scorer->traits().pins.count(dump.context_length);
  if (tokens < pinned && !policy.scorer->traits().keeps_everything) {
    throw UsageError(
        fmt::format("{}: budget {} is {} tokens per KV head, but policy '{}' always keeps {} (its window or sinks, "
                    "which count inside the budget); give it a larger budget or a smaller window",
                    dump.path.string(), request.text, tokens, policy.label, pinned));
  }
}

void check_context(const DumpInfo& dump, const Policy& policy) {
  if (dump.context_length <= policy.scorer->traits().longest_context) return;
  throw UsageError(
      fmt::format("{}: the context has {} tokens, and policy '{}' takes at most {}, because its work grows with their "
                  "square; leave it out, or make a dump of a shorter prompt",
                  dump.path.string(), dump.context_length, policy.label, policy.scorer->traits().longest_context));
}

/// Layers that read one cache score it jointly, by the mean, which places in an order do not have.
void check_joint(const DumpInfo& dump, const Policy& policy) {
  if (!dump.shares_caches() || !policy.scorer->traits().scores_are_places) return;
  throw UsageError(
      fmt::format("{}: some layers read one KV cache, whose entries are kept by the mean of the layers' scores; the "
                  "scores of policy '{}' are places in an order and have no mean; leave it out",
                  dump.path.string(), policy.label));
}

void check_caches(const DumpInfo& dump, const Policy& policy) {
  const Index wanted = policy.allocator->traits().caches;
  const Index found =
      std::count_if(dump.layers.begin(), dump.layers.end(), [](const auto& l) { return l.kv_source < 0; });
  if (wanted == 0 || wanted == found) return;
  throw UsageError(
      fmt::format("{}: policy '{}' has shares for {} layers, but {} layers of the dump have a cache; give each its "
                  "share, or one share for all",
                  dump.path.string(), policy.label, wanted, found));
}

void check_rope(const DumpInfo& dump, const Policy& policy) {
  if (!policy.scorer->traits().undoes_rope) return;
  for (std::size_t layer = 0; layer < dump.layers.size(); ++layer) {
    if (!dump.layers[layer].attention.rope_inv_freq.empty()) continue;
    throw UsageError(
        fmt::format("{}: policy '{}' reads queries as they were before RoPE, but /layers/{}/rope_inv_freq is not "
                    "stored; add it (data/README.md says how), or leave this policy out",
                    dump.path.string(), policy.label, layer));
  }
}

}  // namespace

void check_selection_request(const DumpInfo& dump, const SweepOptions& options) {
  if (options.policies.empty()) throw UsageError("no policy given; 'laprox policies' lists all");
  check_schedule(dump, options);
  const std::vector<Budget> budgets = prompt_budgets(dump, options);
  for (const Policy& policy : options.policies) {
    check_context(dump, policy);
    check_rope(dump, policy);
    check_joint(dump, policy);
    check_caches(dump, policy);
    check_schedule(dump, policy, options);
    for (std::size_t b = 0; b < budgets.size(); ++b) check_pins(dump, policy, options.budgets[b], budgets[b]);
  }
  scoring_rows(dump, options.policies);
  if (std::any_of(options.policies.begin(), options.policies.end(), reads_judged)) judging_rows(dump, options);
}

void check_request(const DumpInfo& dump, const SweepOptions& options) {
  if (options.budgets.empty()) throw UsageError("no budget given, for example --budget 5%,10%,128");
  check_selection_request(dump, options);
  judging_rows(dump, options);
}

std::optional<std::string> why_not(const DumpInfo& dump, const Policy& policy, const SweepOptions& options) {
  SweepOptions alone = options;
  alone.policies = {policy};
  alone.budgets.clear();
  try {
    check_selection_request(dump, alone);
  } catch (const UsageError& error) {
    return error.what();
  }
  return std::nullopt;
}

namespace {

/// The hashes of the files whose turn it is on a rank.
std::vector<std::string> hash_own(const std::vector<const LayerSource*>& dumps, const std::vector<std::size_t>& own) {
  std::vector<std::string> hashes;
  for (const std::size_t dump : own) hashes.push_back(dumps[dump]->content_hash());
  return hashes;
}

/// Hashes the files whose turn it is on this rank, while layers are worked on. Gives what a ByteWriter wrote.
std::future<std::string> start_hashing(const std::vector<const LayerSource*>& dumps, const Turns& turns, Ranks& ranks) {
  return std::async(std::launch::async, [&dumps, own = turns.of(ranks.rank())] {
    ByteWriter writer;
    writer.put(hash_own(dumps, own));
    return writer.bytes();
  });
}

/// A pass over the layers of this rank: `rows` are those of q that it reads.
template <class Rows, class AddLayer>
void pass_over(std::vector<std::unique_ptr<DumpReplay>>& replays, const Backend& backend, bool check_all, Ranks& ranks,
               const Rows& rows, const AddLayer& add_layer) {
  std::vector<LayerRead> reads;
  for (const auto& replay : replays) {
    for (const Index layer : replay->share().layers) reads.push_back({&replay->dump(), layer, rows(*replay)});
  }
  LayerStream layers(std::move(reads), backend, check_all);
  for (const auto& replay : replays) {
    for (std::size_t n = 0; n < replay->share().layers.size(); ++n) {
      ranks.look_out();
      add_layer(*replay, layers.next());
    }
  }
}

}  // namespace

std::vector<DumpResult> sweep_dumps(const std::vector<const LayerSource*>& dumps, const SweepOptions& options,
                                    const Backend& backend, Ranks& ranks, const DumpProgress& progress) {
  std::vector<const DumpInfo*> infos;
  for (const LayerSource* dump : dumps) {
    infos.push_back(&dump->info());
    check_request(dump->info(), options);
  }
  if (!options.schedule.once() && !backend.replays_decoding()) {
    throw UsageError(fmt::format("--schedule {}: the backend {} does not replay decoding; use cpu or reference",
                                 to_string(options.schedule), backend.name()));
  }
  const Turns turns(dumps.size(), ranks);
  auto hashing = start_hashing(dumps, turns, ranks);
  const auto rank_of = share_layers(infos, ranks.size());
  std::vector<std::unique_ptr<DumpReplay>> replays;
  for (std::size_t d = 0; d < dumps.size(); ++d) {
    replays.push_back(std::make_unique<DumpReplay>(*dumps[d], options, backend, ranks, rank_of[d]));
  }
  const auto tell = [&](const DumpReplay& replay, Index layer, const char* what) {
    if (progress) progress(replay.dump().info(), layer, what);
  };
  pass_over(
      replays, backend, true, ranks, [](const DumpReplay& replay) { return replay.scoring_rows(); },
      [&](DumpReplay& replay, LayerTensors layer) {
        const Index index = layer.layer;
        replay.score(std::move(layer));
        tell(replay, index, "scores");
      });
  for (const auto& replay : replays) replay->select();
  pass_over(
      replays, backend, false, ranks, [](const DumpReplay& replay) { return replay.judging_rows(); },
      [&](DumpReplay& replay, LayerTensors layer) {
        const Index index = layer.layer;
        replay.judge(std::move(layer));
        tell(replay, index, "errors");
      });
  for (const auto& replay : replays) replay->gather();
  std::vector<std::string> hashes = turns.ordered(ranks.gather(hashing.get()));
  std::vector<DumpResult> results;
  for (std::size_t d = 0; d < dumps.size() && ranks.is_first(); ++d) {
    results.push_back(replays[d]->finish());
    results.back().content_hash = std::move(hashes[d]);
  }
  return results;
}

std::future<void> hash_ahead(const std::vector<const LayerSource*>& dumps, const Ranks& ranks) {
  // What fails here stays in the future, which nobody asks: whoever sweeps the dump meets it again.
  return std::async(std::launch::async,
                    [dumps, own = Turns(dumps.size(), ranks).of(ranks.rank())] { hash_own(dumps, own); });
}

DumpResult sweep_dump(const LayerSource& dump, const SweepOptions& options, const Backend& backend,
                      const Progress& progress) {
  const auto tell = [&](const DumpInfo& info, Index layer, const std::string& what) {
    if (progress) progress(layer, static_cast<Index>(info.layers.size()), what);
  };
  return std::move(sweep_dumps({&dump}, options, backend, single_rank(), tell)[0]);
}

void visit_scores(const LayerSource& dump, const Policy& policy, const std::optional<BudgetRequest>& budget,
                  const Backend& backend, const ScoreVisitor& visit, const Progress& progress) {
  const DumpInfo& info = dump.info();
  const Index count = static_cast<Index>(info.layers.size());
  const Index tokens = budget ? resolve(*budget, info).tokens_per_head() : 0;
  const bool judged = reads_judged(policy);
  const DumpInfo::Rows rows = judged ? judging_rows(info, {}) : scoring_rows(info, {policy});
  for (Index n = 0; n < count; ++n) {
    // No reading ahead here: the visitor may write to another HDF5 file, and the library serves one thread at a time.
    const LayerTensors layer = read_for(backend, dump, n, rows);
    const LayerView view = judged ? LayerView::of_judged(layer) : LayerView(layer);
    const auto kernels = backend.scoring(layer);
    visit(layer, layer_scores(*policy.scorer, policy.label, {&tokens, 1}, view, *kernels).at(0), *kernels);
    if (progress) progress(n, count, "scores");
  }
}

}  // namespace laprox
