#include "laprox/policy.h"

#include <fmt/format.h>

#include <algorithm>

#include "laprox/error.h"
#include "util/text.h"

namespace laprox {

namespace {

template <class Info>
const Info& find_part(const std::vector<Info>& registry, std::string_view what, const std::string& name) {
  for (const Info& info : registry) {
    if (info.name == name) return info;
  }
  std::vector<std::string> known;
  for (const Info& info : registry) known.push_back(info.name);
  throw UsageError(fmt::format("unknown {} '{}'; did you mean '{}'? ('laprox policies' lists all)", what, name,
                               nearest(name, known)));
}

const OptionSpec* find_option(const std::vector<OptionSpec>& specs, const std::string& name) {
  const auto found = std::find_if(specs.begin(), specs.end(), [&](const auto& spec) { return spec.name == name; });
  return found == specs.end() ? nullptr : &*found;
}

[[noreturn]] void unknown_option(const ScorerInfo& scorer, const AllocatorInfo& allocator, const std::string& name) {
  std::vector<std::string> known;
  for (const auto& spec : scorer.options) known.push_back(spec.name);
  for (const auto& spec : allocator.options) known.push_back(spec.name);
  const std::string owner = scorer.name + "+" + allocator.name;
  if (known.empty()) throw UsageError(fmt::format("{} has no options, found '{}'", owner, name));
  throw UsageError(fmt::format("{} has no option '{}'; did you mean '{}'? (options: {})", owner, name,
                               nearest(name, known), join(known, ", ")));
}

/// Sets `key=value` in whichever part of the policy declares the key.
void set_option(Policy& policy, const ScorerInfo& scorer, const AllocatorInfo& allocator, const std::string& pair) {
  const std::size_t equals = pair.find('=');
  if (equals == std::string::npos) {
    throw UsageError(fmt::format("policy '{}': expected option=value, found '{}'", policy.label, pair));
  }
  const std::string name = kebab(pair.substr(0, equals)), value = trim(pair.substr(equals + 1));
  if (policy.scorer_options.given(name) || policy.allocator_options.given(name)) {
    throw UsageError(fmt::format("policy '{}': option {} is given twice", policy.label, name));
  }
  if (const OptionSpec* spec = find_option(scorer.options, name)) {
    policy.scorer_options.set(*spec, value, scorer.name);
  } else if (const OptionSpec* shared = find_option(allocator.options, name)) {
    policy.allocator_options.set(*shared, value, allocator.name);
  } else {
    unknown_option(scorer, allocator, name);
  }
}

void check_combination(const Policy& policy) {
  if (!policy.scorer->ranks_by_score() && !policy.allocator->ignores_scores()) {
    throw UsageError(fmt::format(
        "policy '{}': the kept set of {} with these options is not a cut through one score, so the allocator {} cannot "
        "split a budget over it; use {}+head, or see 'laprox policies {}'",
        policy.label, policy.scorer_name, policy.allocator_name, policy.scorer_name, policy.scorer_name));
  }
}

}  // namespace

Policy parse_policy(std::string_view text) {
  Policy policy;
  policy.label = trim(text);
  const std::string_view label = policy.label;
  const std::size_t colon = label.find(':');
  const std::string_view name = label.substr(0, colon);
  const std::size_t plus = name.find('+');
  if (name.empty()) throw UsageError("an empty policy; 'laprox policies' lists all");

  const ScorerInfo& scorer = find_part(scorers(), "policy", kebab(name.substr(0, plus)));
  const AllocatorInfo& allocator =
      find_part(allocators(), "allocator",
                plus == std::string_view::npos ? scorer.default_allocator : kebab(name.substr(plus + 1)));
  policy.scorer_name = scorer.name;
  policy.allocator_name = allocator.name;
  policy.scorer_options = Options(scorer.options);
  policy.allocator_options = Options(allocator.options);
  if (colon != std::string_view::npos) {
    for (const std::string& pair : split(label.substr(colon + 1), ',')) set_option(policy, scorer, allocator, pair);
  }
  policy.scorer = scorer.make(policy.scorer_options);
  policy.allocator = allocator.make(policy.allocator_options);
  check_combination(policy);
  return policy;
}

std::string to_string(const Policy& policy) {
  std::vector<std::string> pairs;
  for (const Options* options : {&policy.scorer_options, &policy.allocator_options}) {
    for (const auto& [name, value] : options->spelled_out()) pairs.push_back(name + "=" + value);
  }
  return policy.scorer_name + "+" + policy.allocator_name + (pairs.empty() ? "" : ":" + join(pairs, ","));
}

std::vector<std::string> split_policies(std::string_view list) {
  std::vector<std::string> policies;
  for (const std::string& part : split(list, ',')) {
    const bool continues =
        !policies.empty() && part.find('=') != std::string::npos && part.find(':') == std::string::npos;
    if (continues) {
      policies.back() += "," + part;
    } else {
      policies.push_back(trim(part));
    }
  }
  return policies;
}

}  // namespace laprox
