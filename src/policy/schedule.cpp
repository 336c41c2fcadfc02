#include "laprox/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/text.h"
#include "laprox/error.h"

namespace laprox {

namespace {

constexpr Index kLongestInterval = 1'000'000'000;

[[noreturn]] void not_a_schedule(std::string_view text) {
  throw UsageError(fmt::format(
      "--schedule '{}': expected once (after the prompt), step (after every decoded token) or every:N (after "
      "every N of them, 1 to {}), the last two also with ',grow' behind them",
      text, kLongestInterval));
}

}  // namespace

Schedule parse_schedule(std::string_view text) {
  Schedule schedule;
  std::string_view rest = text;
  if (rest == "once") return schedule;
  if (rest.ends_with(",grow")) {
    schedule.grow = true;
    rest.remove_suffix(5);
  }
  if (rest == "step") {
    schedule.interval = 1;
    return schedule;
  }
  if (!rest.starts_with("every:")) not_a_schedule(text);
  rest.remove_prefix(6);
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), schedule.interval);
  if (error != std::errc() || end != rest.data() + rest.size()) not_a_schedule(text);
  if (schedule.interval < 1 || schedule.interval > kLongestInterval) not_a_schedule(text);
  return schedule;
}

std::string to_string(const Schedule& schedule) {
  if (schedule.once()) return "once";
  const std::string name = schedule.interval == 1 ? "step" : fmt::format("every:{}", schedule.interval);
  return schedule.grow ? name + ",grow" : name;
}

DecodingBudget::DecodingBudget(const BudgetRequest& request, const DumpInfo& dump, const Schedule& schedule) {
  if (schedule.grow) {
    if (request.unit != BudgetRequest::Unit::percent) {
      throw UsageError(fmt::format("budget {}: --schedule {} takes shares of the tokens seen so far, such as 10%",
                                   request.text, to_string(schedule)));
    }
    percent_ = request.amount;
  }
  // A cache may have room for more than the prompt: then it is first cut when that room is used up.
  const bool larger_than_prompt = !schedule.once() && request.unit == BudgetRequest::Unit::tokens &&
                                  request.amount > static_cast<double>(dump.context_length);
  constant_ = larger_than_prompt ? static_cast<Index>(request.amount) : resolve(request, dump).tokens_per_head();
}

Index DecodingBudget::tokens(Index seen) const {
  if (percent_ == 0) return constant_;
  return std::max<Index>(1, static_cast<Index>(percent_of(percent_, seen)));
}

Lifetimes lifetimes_after_prompt(const std::vector<std::int32_t>& held, Index context, Index tokens,
                                 Index sliding_window) {
  const auto last = [&](Index token) {
    const Index aged = sliding_window > 0 ? std::min(token + sliding_window, tokens) : tokens;
    return static_cast<std::int32_t>(std::max(aged, context));
  };
  Lifetimes gone(static_cast<std::size_t>(tokens), static_cast<std::int32_t>(context));
  for (const std::int32_t token : held) gone[token] = last(token);
  for (Index token = context; token < tokens; ++token) gone[token] = last(token);
  return gone;
}

}  // namespace laprox
