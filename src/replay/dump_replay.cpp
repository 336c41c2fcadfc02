#include "replay/dump_replay.h"

#include <algorithm>
#include <utility>

#include "replay/unseen.h"

namespace laprox {

DumpReplay::DumpReplay(const LayerSource& dump, const SweepOptions& options, const Backend& backend, Ranks& ranks,
                       std::vector<Index> rank_of)
    : dump_(dump),
      options_(options),
      backend_(backend),
      rank_of_(std::move(rank_of)),
      share_(Share::of(ranks, rank_of_)),
      scoring_(std::in_place, dump.info(), options, backend, share_),
      result_{
          dump.info(), {}, resolve_budgets(dump.info(), options), std::vector<PolicyResult>(options.policies.size())} {}

void DumpReplay::select() {
  selections_ = scoring_->finish();
  scoring_.reset();  // the sorted scores are not needed any more
  // Under a schedule the Judgement compares what caches held, not this cut alone.
  const auto twins =
      options_.schedule.once() ? find_twins(selections_, share_.ranks) : std::vector<std::vector<Index>>();
  const std::vector<Index> unseen = unseen_tokens(dump_.info(), options_);
  for (std::size_t p = 0; p < selections_.size(); ++p) {
    for (std::size_t b = 0; b < selections_[p].counts.size(); ++b) {
      Cell& cell = result_.policies[p].cells.emplace_back();
      cell.counts = selections_[p].counts[b];
      cell.tied = selections_[p].tied[b];
      cell.unseen = unseen_entries(selections_[p], b, unseen);
      if (!twins.empty()) cell.identical_to = twins[p][b];
    }
  }
  judgement_.emplace(dump_.info(), options_, backend_, selections_, result_.policies);
}

/// Calls visit(ranking, how much of it any budget keeps) for the rankings of these layers, in a fixed order.
template <class Visit>
void DumpReplay::each_kept(const std::vector<Index>& layers, const Visit& visit) {
  for (Selection& selection : selections_) {
    for (std::size_t order = 0; order < selection.orders.size(); ++order) {
      for (const Index layer : layers) {
        const auto place = static_cast<std::size_t>(layer);
        auto& rankings = selection.orders[order][place];
        rankings.resize(selection.counts[0][place].size());
        for (std::size_t head = 0; head < rankings.size(); ++head) {
          Index most = 0;
          for (std::size_t b = 0; b < selection.counts.size(); ++b) {
            if (selection.orders.size() == 1 || b == order) most = std::max(most, selection.counts[b][place][head]);
          }
          visit(rankings[head], static_cast<std::size_t>(most));
        }
      }
    }
  }
}

std::string DumpReplay::found_here() {
  ByteWriter writer;
  judgement_->write(share_.layers, writer);
  for (const PolicyResult& policy : result_.policies) {
    for (const Cell& cell : policy.cells) {
      for (const Index layer : share_.layers) writer.put(cell.unseen[layer]);
    }
  }
  if (options_.save_kept) {
    each_kept(share_.layers, [&](Ranking& ranking, std::size_t most) {
      ranking.resize(most);
      writer.put(ranking);
    });
  }
  return writer.bytes();
}

void DumpReplay::take(std::string_view bytes, const std::vector<Index>& layers) {
  ByteReader reader(bytes);
  judgement_->read(layers, reader);
  for (PolicyResult& policy : result_.policies) {
    for (Cell& cell : policy.cells) {
      for (const Index layer : layers) reader.get(cell.unseen[layer]);
    }
  }
  if (options_.save_kept) each_kept(layers, [&](Ranking& ranking, std::size_t) { reader.get(ranking); });
  require(reader.at_end(), "a rank's findings are read to their end");
}

void DumpReplay::gather() {
  const std::vector<std::string> found = share_.ranks.gather(share_.ranks.is_first() ? "" : found_here());
  for (std::size_t rank = 1; rank < found.size(); ++rank) {
    take(found[rank], layers_of(rank_of_, static_cast<Index>(rank)));
  }
}

DumpResult DumpReplay::finish() {
  judgement_->finish();
  for (std::size_t p = 0; p < selections_.size(); ++p) {
    if (options_.save_kept) result_.policies[p].selection = std::move(selections_[p]);
  }
  return std::move(result_);
}

}  // namespace laprox
