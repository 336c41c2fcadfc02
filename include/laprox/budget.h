#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "laprox/dump_info.h"

namespace laprox {

/// What a user asked for: "128" tokens per KV head, "5%" of the context per KV head, or "64MiB" for the whole model.
struct BudgetRequest {
  enum class Unit { tokens, percent, bytes };
  Unit unit = Unit::tokens;
  double amount = 0;
  std::string text;  ///< as it was written: the budget's label in tables and reports

  bool operator==(const BudgetRequest&) const = default;
};

/// That many percent of some tokens, rounded to the nearest (half up).
double percent_of(double percent, Index tokens);

/// Throws UsageError where `text` is no budget.
BudgetRequest parse_budget(std::string_view text);

/// The KV pairs kept in the whole model: exactly `pairs`, an equal share per KV head on average. Pinned tokens count.
class Budget {
 public:
  Budget(Index tokens_per_head, Index total_kv_heads)
      : Budget(tokens_per_head, total_kv_heads, static_cast<double>(tokens_per_head)) {}
  /// `asked`: the tokens per KV head before they were rounded to a whole number.
  Budget(Index tokens_per_head, Index total_kv_heads, double asked)
      : per_head_(tokens_per_head), heads_(total_kv_heads), asked_(asked) {}
  Index pairs() const { return per_head_ * heads_; }
  Index tokens_per_head() const { return per_head_; }
  Index heads() const { return heads_; }
  /// What was asked for per KV head: 5 % of 1025 tokens are 51.25. For published code that computes with it.
  double asked() const { return asked_; }
  bool operator==(const Budget&) const = default;

 private:
  Index per_head_, heads_;
  double asked_;
};

/// The request on one dump: percentages are rounded to the nearest token (half up), bytes down to a whole token per KV
/// head. Throws UsageError below one token per KV head or above the context.
Budget resolve(const BudgetRequest& request, const DumpInfo& dump);

/// Kept entries per layer and KV head: [layer][kv_head].
using HeadCounts = std::vector<std::vector<Index>>;

Index total(const HeadCounts& counts);
/// The kept pairs of all caches: a cache that several layers of the dump read counts once.
Index total(const HeadCounts& counts, const DumpInfo& dump);

}  // namespace laprox
