#pragma once

#include <optional>
#include <span>
#include <vector>

#include "backends/cpu/segment_sums.h"
#include "laprox/backend.h"

namespace laprox::cpu {

/// Where a walk leaves its results: rows of head outputs' differences, one cell after the other.
struct Target {
  std::span<const double> sinks;  ///< empty, or the sink logit of each of the rows' heads
  SoftmaxMode mode;
  float* first;          ///< the delta of cell 0, query 0, head 0 of the rows
  float* kept;           ///< the kept output of the same, at the same strides
  Index cell_stride;     ///< floats from one cell to the next
  Index query_stride;    ///< floats from one query to the next
  double* evicted_mass;  ///< [cell]: the evicted weight, summed over the real rows, is added
};

/// One KV head's kept sets of one policy, judged by some query rows, block of tokens after block.
///
/// The difference of a cell's kept head outputs to the exact ones is formed as w (o_kept - o_evicted), w being the
/// evicted share of the softmax denominator, from sums over the kept and over the evicted tokens: no two nearly equal
/// outputs are ever subtracted, so that small errors are as accurate as large ones, and nothing evicted gives exactly
/// 0.
class Walk {
 public:
  virtual ~Walk() = default;
  virtual void add(const WeightBlock& block) = 0;
  /// Once all tokens were added.
  virtual void write(const Target& target) const = 0;
};

/// Walks along one `ranking`: cell b keeps its first counts[b] tokens and all decoded ones ([context, tokens)). The
/// tokens between two neighbouring counts are summed once.
class RankedWalk : public Walk {
 public:
  RankedWalk(const QueryRows& rows, Index value_size, Index context, Index tokens, const Ranking& ranking,
             std::span<const Index> counts);
  void add(const WeightBlock& block) override;
  void write(const Target& target) const override;

 private:
  const QueryRows& rows_;
  Index value_size_;
  std::size_t cuts_ = 0;
  std::vector<std::size_t> cut_of_cell_;
  std::vector<std::int32_t> segment_of_;            ///< [token]; segment 0 is what every cell keeps, the last what none
  std::vector<std::vector<std::int32_t>> members_;  ///< [segment]: of the block that is being added
  std::optional<SegmentSums> sums_;
};

/// One cell whose cache changes while the model decodes: the query at positions[n] finds the entries of lifetimes that
/// it is before the end of. `positions` are those of the rows' queries, ascending; they and the lifetimes outlive this.
class DecodingWalk : public Walk {
 public:
  DecodingWalk(const QueryRows& rows, Index value_size, std::span<const Index> positions, const Lifetimes& lifetimes);
  void add(const WeightBlock& block) override;
  void write(const Target& target) const override;

 private:
  const QueryRows& rows_;
  Index value_size_;
  std::span<const Index> positions_;
  const Lifetimes& lifetimes_;
  SegmentSums sums_;
};

}  // namespace laprox::cpu
