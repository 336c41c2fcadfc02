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

/// Stretches of the judging queries whose errors are reported each, where nothing else was said: none without a
/// schedule.
inline constexpr Index kSegments = 8;
inline Index default_segments(const Schedule& schedule) { return schedule.once() ? 0 : kSegments; }

/// Reads "once", "step" (every:1) or "every:N", the last two optionally with ",grow". Throws UsageError.
Schedule parse_schedule(std::string_view text);
/// What parse_schedule reads back.
std::string to_string(const Schedule& schedule);

/// A budget while the model decodes, in entries per KV head.
class DecodingBudget {
 public:
  /// Throws UsageError where the budget is not one of this schedule: below one token, or, with `grow`, no percentage,
  /// or, where there is only the cut after the prompt, more than the prompt.
  DecodingBudget(const BudgetRequest& request, const DumpInfo& dump, const Schedule& schedule);
  /// What a cache may hold once `seen` tokens have been processed. Without `grow`, the same for every `seen`.
  Index tokens(Index seen) const;

 private:
  double percent_ = 0;  ///< of the tokens seen; 0: constant
  Index constant_ = 0;
};

/// What one KV head's cache held while decoding, one number per token: the entry of token i is seen by the queries at
/// positions i .. gone[i] - 1. An entry that never leaves has gone[i] >= T.
using Lifetimes = std::vector<std::int32_t>;

/// [T] of a cache that is never cut again after the prompt's cut has left `held` of its C tokens. With a sliding window
/// (0: none) an entry leaves by age: token i is gone once the next query is at position i + sliding_window or behind.
Lifetimes lifetimes_after_prompt(const std::vector<std::int32_t>& held, Index context, Index tokens,
                                 Index sliding_window);

}  // namespace laprox
