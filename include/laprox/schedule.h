#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "laprox/budget.h"

namespace laprox {

/// When a cache is cut to its budget: after the prompt, and then, while the model decodes, after every `interval`
/// tokens. At a cut every entry that the cache holds is a candidate, prompt and decoded tokens alike; what is evicted
/// is gone.
struct Schedule {
  Index interval = 0;  ///< decoded tokens between two cuts; 0: only the cut after the prompt
  bool grow = false;   ///< budgets are shares of the tokens seen so far, not of the prompt

  bool once() const { return interval == 0; }
  /// Whether the cache is cut once the query of the `step`-th decoded token (from 0) has been answered.
  bool cuts_after(Index step) const { return interval > 0 && (step + 1) % interval == 0; }
  bool operator==(const Schedule&) const = default;
};

/// Stretches of the decoded queries whose errors are reported each, where a schedule is replayed and nothing else was
/// said.
inline constexpr Index kSegments = 8;

/// Reads "once", "step" (every:1) or "every:N", the last two optionally with ",grow". Throws UsageError.
Schedule parse_schedule(std::string_view text);
/// What parse_schedule reads back.
std::string to_string(const Schedule& schedule);

/// A budget while the model decodes, in entries per KV head.
class DecodingBudget {
 public:
  /// Throws UsageError where the budget is not one of this schedule: below one token, or, with `grow`, no percentage.
  DecodingBudget(const BudgetRequest& request, const DumpInfo& dump, const Schedule& schedule);
  /// What a cache may hold once `seen` tokens have been processed. Without `grow`, the same for every `seen`.
  Index tokens(Index seen) const;

 private:
  double share_ = 0;  ///< of the tokens seen; 0: constant
  Index constant_ = 0;
};

/// What one KV head's cache held while decoding, one number per token: the entry of token i is seen by the queries at
/// positions i .. gone[i] - 1. An entry that is never evicted has gone[i] >= T.
using Lifetimes = std::vector<std::int32_t>;

}  // namespace laprox
