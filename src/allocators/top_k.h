#pragma once

#include <span>
#include <vector>

#include "laprox/ranks.h"
#include "laprox/tensor.h"

namespace laprox {

/// A list of scores, descending, that compete as score / divisor; divisor > 0.
struct ScoreList {
  std::span<const double> scores;
  double divisor = 1;
};

/// How many entries of each list are among the `k` largest of all lists together. Ties: the earlier list first, and
/// within a list the earlier entry. Cost: O(lists * log(length)), no merging. Requires 0 <= k <= the lists' total
/// length. Over ranks, all of which call it together, each gives the lists that it holds and empty ones in the others'
/// places: 17 all-gathers of a few numbers, and one of two numbers a list.
std::vector<Index> top_k_counts(const std::vector<ScoreList>& lists, Index k, Ranks& ranks = single_rank());

/// The same where every list is sure of its first `guaranteed` entries, and only the rest compete. Lists of plain
/// scores; a guarantee that `k` cannot pay is cut to an equal share.
std::vector<Index> top_k_counts_above(const std::vector<std::vector<double>>& lists, Index guaranteed, Index k);

}  // namespace laprox
