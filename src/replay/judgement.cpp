#include "replay/judgement.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "dump/queries.h"
#include "dump/range.h"
#include "laprox/error.h"
#include "replay/decoding.h"
#include "replay/selection.h"

namespace laprox {

/// One layer's kept sets of every order of every policy, and which budgets of which policy each order serves.
struct Judgement::LayerKeeps {
  explicit LayerKeeps(const std::vector<Selection>& selections, std::size_t layer) {
    for (std::size_t p = 0; p < selections.size(); ++p) {
      const Selection& selection = selections[p];
      for (std::size_t order = 0; order < selection.orders.size(); ++order) {
        keeps.push_back({selection.orders[order][layer], {}});
        cells.emplace_back();
        for (std::size_t b = 0; b < selection.counts.size(); ++b) {
          if (selection.orders.size() > 1 && b != order) continue;
          keeps.back().counts.push_back(selection.counts[b][layer]);
          cells.back().emplace_back(p, b);
        }
      }
    }
  }
  /// Caches that change while the model decodes: a kept set for each policy and budget.
  LayerKeeps(const std::vector<Selection>& selections, std::size_t layer, const LayerLifetimes& lifetimes) {
    for (std::size_t p = 0; p < lifetimes.size(); ++p) {
      for (std::size_t b = 0; b < lifetimes[p].size(); ++b) {
        keeps.push_back({selections[p].rankings(b)[layer], {selections[p].counts[b][layer]}, lifetimes[p][b]});
        cells.push_back({{p, b}});
      }
    }
  }
  std::vector<LayerKeep> keeps;
  std::vector<std::vector<std::pair<std::size_t, std::size_t>>> cells;  ///< [keep][count]: policy, budget
};

namespace {

bool is_finite(const OutputError& error) {
  const auto finite = [](const std::vector<double>& values) {
    return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
  };
  return finite(error.query_error) && finite(error.kept_square) && finite(error.kept_product) &&
         finite(error.head_error) && std::isfinite(error.retained_mass) && std::isfinite(error.bound);
}

/// Finite tensors can have squares that are not: no figure is made of those.
void check_finite(const LayerErrors& replayed, Index layer, const Backend& backend) {
  for (const auto& of_policy : replayed.errors) {
    if (std::all_of(of_policy.begin(), of_policy.end(), is_finite)) continue;
    throw BackendError(fmt::format("layer {}: an error is not finite: its terms leave the range of {}; {}", layer,
                                   to_string(backend.element_type()), advice_on_range(backend.element_type())));
  }
}

void check_residual_error(const LayerMetrics& metrics, const LayerTensors& layer) {
  const std::vector<double>& norms = layer.residual_norms;
  if (norms.empty() || std::isfinite(metrics.residual_error)) return;
  throw BackendError(fmt::format(
      "layer {}: the error relative to the residual stream is not finite: residual_norms are as small as {:.3g}",
      layer.layer, *std::min_element(norms.begin(), norms.end())));
}

/// One layer judged, its queries taken a block at a time.
struct JudgedLayer {
  ExactNorms exact;
  std::vector<std::vector<OutputError>> errors;  ///< [keep][count]

  void add(LayerErrors&& block, Index block_queries, Index queries) {
    const double share = static_cast<double>(block_queries) / static_cast<double>(queries);
    const ExactNorms norms = norms_of(block.exact);
    append(exact.query, norms.query);
    add_to(exact.head, norms.head);
    errors.resize(block.errors.size());
    for (std::size_t keep = 0; keep < errors.size(); ++keep) {
      errors[keep].resize(block.errors[keep].size());
      for (std::size_t i = 0; i < errors[keep].size(); ++i) {
        OutputError &whole = errors[keep][i], &part = block.errors[keep][i];
        append(whole.query_error, part.query_error);
        append(whole.kept_square, part.kept_square);
        append(whole.kept_product, part.kept_product);
        add_to(whole.head_error, part.head_error);
        whole.retained_mass += share * part.retained_mass;
        // The truncated mode's bound is over all queries, which therefore come in one block.
        whole.bound = part.bound;
      }
    }
  }

 private:
  static void append(std::vector<double>& to, const std::vector<double>& from) {
    to.insert(to.end(), from.begin(), from.end());
  }
  static void add_to(std::vector<double>& to, const std::vector<double>& from) {
    to.resize(from.size(), 0.0);
    for (std::size_t i = 0; i < from.size(); ++i) to[i] += from[i];
  }
};

/// Queries that are judged at once: head outputs of all cells are in memory.
constexpr Index kJudgedQueries = 512;

/// Judges the kept sets by the queries that `layer` holds, which are used up.
JudgedLayer judge(LayerTensors& layer, const std::vector<LayerKeep>& kept, SoftmaxMode mode, const Backend& backend) {
  JudgedLayer judged;
  const Index queries = layer.queries(), block = mode == SoftmaxMode::truncated ? queries : kJudgedQueries;
  const QueryBlock all = take_queries(layer);
  for (Index first = 0; first < queries; first += block) {
    const Index count = std::min(block, queries - first);
    set_queries(layer, part_of(all, first, count));
    LayerErrors replayed = backend.layer_errors(layer, kept, mode);
    check_finite(replayed, layer.layer, backend);
    judged.add(std::move(replayed), count, queries);
  }
  layer.residual_norms = all.residual_norms;
  return judged;
}

}  // namespace

Judgement::Judgement(const DumpInfo& info, const SweepOptions& options, const Backend& backend,
                     const std::vector<Selection>& selections, std::vector<PolicyResult>& policies)
    : info_(info), options_(options), backend_(backend), selections_(selections), policies_(policies) {
  for (PolicyResult& policy : policies_) {
    for (Cell& cell : policy.cells) {
      cell.layers.resize(info.layers.size());
      if (options.save_kept && !options.schedule.once()) cell.lifetimes.resize(info.layers.size());
    }
  }
  if (options.schedule.once()) return;
  census_.assign(selections.size(),
                 std::vector<CacheCensus>(options.budgets.size(), CacheCensus(info.context_length, info.tokens)));
}

DumpInfo::Rows Judgement::rows() const {
  DumpInfo::Rows rows = judging_rows(info_, options_);
  Index window = 0;
  for (const Policy& policy : options_.policies) window = std::max(window, policy.scorer->traits().queries.window);
  if (!options_.schedule.once()) rows.first = std::max<Index>(0, rows.first - std::max<Index>(0, window - 1));
  return rows;
}

void Judgement::add_layer(LayerTensors layer) {
  const auto place = static_cast<std::size_t>(layer.layer);
  if (options_.schedule.once()) return judge_layer(layer, LayerKeeps(selections_, place));
  const LayerLifetimes lifetimes = replay_decoding(layer, place, info_, options_, selections_, backend_);
  for (std::size_t p = 0; p < lifetimes.size(); ++p) {
    for (std::size_t b = 0; b < lifetimes[p].size(); ++b) {
      for (std::size_t head = 0; head < lifetimes[p][b].size(); ++head) {
        census_[p][b].add(lifetimes[p][b][head], layer.attention.sliding_window,
                          static_cast<std::uint64_t>(place) << 32 | head);
      }
      if (options_.save_kept) policies_[p].cells[b].lifetimes[place] = lifetimes[p][b];
    }
  }
  const Index decoded = info_.tokens - info_.context_length;
  set_queries(layer, copy_queries(layer, layer.queries() - decoded, decoded));
  const bool cuts = cuts_while_decoding(info_, options_.schedule);
  judge_layer(layer, cuts ? LayerKeeps(selections_, place, lifetimes) : LayerKeeps(selections_, place));
}

namespace {

/// Calls visit(figure) for everything that LayerMetrics consists of; a new member does not compile until it is here.
template <class Metrics, class Visit>
void each_figure(Metrics& metrics, const Visit& visit) {
  auto& [a, b, c, d, e, f, g, h, i, j, k, heads, pooled, segments] = metrics;
  for (auto* figure : {&a, &b, &c, &d, &e, &f, &g, &h, &i, &j, &k}) visit(*figure);
  visit(heads);
  visit(pooled);
  visit(segments);
}

}  // namespace

void Judgement::write(const std::vector<Index>& layers, ByteWriter& writer) const {
  for (std::size_t p = 0; p < policies_.size(); ++p) {
    for (std::size_t b = 0; b < policies_[p].cells.size(); ++b) {
      const Cell& cell = policies_[p].cells[b];
      for (const Index layer : layers) {
        const auto place = static_cast<std::size_t>(layer);
        each_figure(cell.layers[place], [&](const auto& figure) { writer.put(figure); });
        if (!cell.lifetimes.empty()) writer.put(cell.lifetimes[place]);
      }
      if (!census_.empty()) census_[p][b].write(writer);
    }
  }
}

void Judgement::read(const std::vector<Index>& layers, ByteReader& reader) {
  for (std::size_t p = 0; p < policies_.size(); ++p) {
    for (std::size_t b = 0; b < policies_[p].cells.size(); ++b) {
      Cell& cell = policies_[p].cells[b];
      for (const Index layer : layers) {
        const auto place = static_cast<std::size_t>(layer);
        each_figure(cell.layers[place], [&](auto& figure) { reader.get(figure); });
        if (!cell.lifetimes.empty()) reader.get(cell.lifetimes[place]);
      }
      if (census_.empty()) continue;
      CacheCensus theirs = census_[p][b];
      theirs.read(reader);
      census_[p][b].add(theirs);
    }
  }
}

void Judgement::finish() {
  for (std::size_t p = 0; p < policies_.size(); ++p) {
    for (std::size_t b = 0; b < policies_[p].cells.size(); ++b) {
      Cell& cell = policies_[p].cells[b];
      cell.model = model_metrics(cell.layers);
      if (census_.empty()) continue;
      cell.cache = census_[p][b].figures();
      for (std::size_t other = 0; other < p && cell.identical_to < 0; ++other) {
        if (census_[other][b].fingerprint() == census_[p][b].fingerprint())
          cell.identical_to = static_cast<Index>(other);
      }
    }
  }
}

void Judgement::judge_layer(LayerTensors& layer, const LayerKeeps& kept) {
  const JudgedLayer judged = judge(layer, kept.keeps, options_.mode, backend_);
  for (std::size_t keep = 0; keep < kept.keeps.size(); ++keep) {
    for (std::size_t i = 0; i < kept.cells[keep].size(); ++i) {
      const auto [p, b] = kept.cells[keep][i];
      LayerMetrics& metrics = policies_[p].cells[b].layers[layer.layer];
      metrics =
          layer_metrics(judged.exact, judged.errors[keep][i], options_.mode, layer.residual_norms, options_.segments);
      check_residual_error(metrics, layer);
    }
  }
}

}  // namespace laprox
