#pragma once

#include "laprox/scorer.h"
#include "scorers/rotary.h"

namespace laprox {

/// Base of scorers that guess what the coming queries will look like: the prompt's queries before RoPE, rotated to the
/// positions that follow. The first tokens take no part in the guess, and are kept unless they compete.
class FutureQueryScorer : public Scorer {
 public:
  /// The options future and sinks.
  static std::vector<OptionSpec> options() {
    return {OptionSpec::integer("future", 512, 1, 1 << 20, "coming positions that the guess averages over"),
            OptionSpec::integer("sinks", 4, 0, 1 << 20,
                                "first tokens that are always kept, and whose queries do not count")};
  }

 protected:
  /// What becomes of the first tokens.
  enum class Sinks { pinned, compete };

  /// `traits`: all but the queries, the pins and RoPE.
  explicit FutureQueryScorer(const Options& options, const ScorerTraits& traits = {}, Sinks sinks = Sinks::pinned)
      : Scorer(with_queries(traits, sinks == Sinks::pinned ? options.integer("sinks") : 0)),
        future_(options.integer("future")),
        sinks_(options.integer("sinks")) {}

  Index sinks() const { return sinks_; }
  /// One head's queries behind the sinks, as they were before RoPE: [C - sinks, d].
  Matrix plain_queries(const LayerView& layer, Index query_head) const {
    const std::span<const Index> positions(layer.query_positions());
    return before_rope(layer.queries_of(query_head).bottomRows(layer.queries() - sinks()),
                       positions.subspan(static_cast<std::size_t>(sinks())), layer.attention().rope_inv_freq);
  }
  Rotation future_rotation(const LayerView& layer) const {
    return mean_rotation(layer.context_length(), future_, layer.attention().rope_inv_freq);
  }

 private:
  static ScorerTraits with_queries(ScorerTraits traits, Index pinned) {
    traits.queries = {.kind = QueryNeed::Kind::all};
    traits.pins.first = pinned;
    traits.undoes_rope = true;
    return traits;
  }

  Index future_, sinks_;
};

}  // namespace laprox
