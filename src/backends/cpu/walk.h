#pragma once

#include <span>
#include <vector>

#include "backends/cpu/logits.h"
#include "laprox/backend.h"

namespace laprox::cpu {

/// The logits [tokens, stride] of some query rows of one KV head against all its keys, and where the keys' values are.
struct LogitTable {
  const QueryRows& rows;
  const float* logits;
  const float* values;  ///< [tokens, value_size]
  Index value_size;
};

/// Softmax numerators over a set of tokens, per query row: largest logit m, sum of exp(logit - m), and the values
/// weighted with them. Partial sums over disjoint sets merge exactly, whatever their order of magnitude.
struct PartialSoftmax {
  PartialSoftmax(Index stride, Index value_stride);
  Buffer<float> maximum, sum, values;  ///< [stride], [stride], [stride, value_stride]
};

/// Adds nothing but `tokens` to a fresh partial sum.
PartialSoftmax sum_over(const LogitTable& table, std::span<const std::int32_t> tokens);

/// Where a walk leaves its results: rows of head outputs' differences, one cell after the other.
struct DeltaTarget {
  float* first;        ///< the delta of cell 0, query 0, head 0 of the table's rows
  float* kept;         ///< the kept output of the same, at the same strides
  Index cell_stride;   ///< floats from one cell to the next
  Index query_stride;  ///< floats from one query to the next
};

/// Walks once along one KV head's `ranking`: cell b keeps its first counts[b] tokens and all decoded ones ([context,
/// tokens)). Writes each cell's kept head outputs, and these minus the exact ones, to `target`, and adds its evicted
/// weight, summed over the real rows, to evicted_mass[b]. `sinks` is empty or holds the sink logit of each of the
/// table's heads.
///
/// The difference is formed as w (o_kept - o_evicted), w being the evicted share of the softmax denominator, from sums
/// over the kept and over the evicted tokens: no two nearly equal outputs are ever subtracted, so that small errors are
/// as accurate as large ones, and nothing evicted gives exactly 0.
void walk(const LogitTable& table, Index context, Index tokens, const Ranking& ranking, std::span<const Index> counts,
          std::span<const double> sinks, SoftmaxMode mode, DeltaTarget target, double* evicted_mass);

/// The same of one cell whose cache changes while the model decodes: the query at positions[n] finds the entries of
/// lifetimes that it is before the end of. `positions` are those of the table's queries, ascending.
void walk_decoding(const LogitTable& table, std::span<const Index> positions, const Lifetimes& lifetimes,
                   std::span<const double> sinks, SoftmaxMode mode, DeltaTarget target, double* evicted_mass);

}  // namespace laprox::cpu
