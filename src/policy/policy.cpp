#include "laprox/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/text.h"
#include "laprox/error.h"
#include "laprox/methods.h"

namespace laprox {

namespace {

template <class Info>
const Info& find_part(const std::vector<Info>& registry, std::string_view what, const std::string& name) {
  for (const Info& info : registry) {
    if (info.name == name) return info;
  }
  std::vector<std::string> known;
  for (const Info& info : registry) known.push_back(info.name);
  if constexpr (std::is_same_v<Info, ScorerInfo>) {
    for (const Method& method : methods()) known.push_back(method.name);
  }
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

/// The parts of "scorer+allocator:option=value,...".
struct Spelling {
  std::string scorer;
  std::optional<std::string> allocator;
  std::vector<std::string> options;
};

Spelling spell(std::string_view text) {
  Spelling spelling;
  const std::size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const std::size_t plus = name.find('+');
  spelling.scorer = kebab(name.substr(0, plus));
  if (plus != std::string_view::npos) spelling.allocator = kebab(name.substr(plus + 1));
  if (colon != std::string_view::npos) spelling.options = split(text.substr(colon + 1), ',');
  return spelling;
}

/// Sets those options of `pairs` that the user has not given.
void set_others(Policy& policy, const ScorerInfo& scorer, const AllocatorInfo& allocator,
                const std::vector<std::string>& pairs) {
  for (const std::string& pair : pairs) {
    const std::string name = kebab(pair.substr(0, pair.find('=')));
    if (!policy.scorer_options.given(name) && !policy.allocator_options.given(name)) {
      set_option(policy, scorer, allocator, pair);
    }
  }
}

std::string preferring_scorers() {
  std::vector<std::string> names;
  for (const ScorerInfo& info : scorers()) {
    Options defaults(info.options);
    if (info.make(defaults)->traits().gives_preference) names.push_back(info.name);
  }
  return join(names, ", ");
}

void check_combination(const Policy& policy, const ScorerInfo& scorer) {
  if (!scorer.only_allocator.empty() && policy.allocator_name != scorer.only_allocator) {
    throw UsageError(fmt::format("policy '{}': the scores of {} only mean something to the allocator {}; use {}+{}",
                                 policy.label, scorer.name, scorer.only_allocator, scorer.name, scorer.only_allocator));
  }
  if (policy.allocator->traits().needs_preference && !policy.scorer->traits().gives_preference) {
    throw UsageError(
        fmt::format("policy '{}': the allocator {} asks the scorer how much each layer should have, and {} does not "
                    "say; scorers that do: {}",
                    policy.label, policy.allocator_name, policy.scorer_name, preferring_scorers()));
  }
  if (policy.allocator->traits().needs_shares && policy.scorer->traits().below_zero) {
    throw UsageError(
        fmt::format("policy '{}': the allocator {} with these options takes shares of a layer's sum of scores, and "
                    "those of {} may be below 0; use +global:normalize=false, +layer, +ada or +head",
                    policy.label, policy.allocator_name, policy.scorer_name));
  }
  if (!policy.scorer->traits().spends_exactly && policy.allocator_name != "head") {
    throw UsageError(
        fmt::format("policy '{}': with these options {} decides itself how many tokens it keeps; use {}+head",
                    policy.label, policy.scorer_name, policy.scorer_name));
  }
  if (!policy.scorer->traits().ranks_by_score && !policy.allocator->traits().ignores_scores) {
    throw UsageError(fmt::format(
        "policy '{}': the kept set of {} with these options is not a cut through one score, so the allocator {} "
        "cannot split a budget over it; use {}+head, or see 'laprox policies {}'",
        policy.label, policy.scorer_name, policy.allocator_name, policy.scorer_name, policy.scorer_name));
  }
}

using MakeScorer = std::function<std::shared_ptr<const Scorer>(Options&)>;

/// The policy that `spelling` asks for, once its scorer is known. `meant`: what the name stands for, where it is a
/// published method's; else `spelling` itself.
Policy assemble(const std::string& label, const Spelling& spelling, const Spelling& meant, const ScorerInfo& scorer,
                const MakeScorer& make) {
  const bool method = &meant != &spelling;
  const Spelling fallback = spell(scorer.default_allocator);
  const AllocatorInfo& allocator = find_part(allocators(), "allocator", meant.allocator.value_or(fallback.scorer));
  Policy policy;
  policy.label = label;
  policy.scorer_name = scorer.name;
  policy.allocator_name = allocator.name;
  policy.scorer_options = Options(scorer.options);
  policy.allocator_options = Options(allocator.options);
  for (const std::string& pair : spelling.options) set_option(policy, scorer, allocator, pair);
  if (method) set_others(policy, scorer, allocator, meant.options);
  if (!meant.allocator) set_others(policy, scorer, allocator, fallback.options);
  policy.scorer = make(policy.scorer_options);
  if (policy.scorer->traits().below_zero && allocator.name == "global") {
    set_others(policy, scorer, allocator, {"normalize=false"});
  }
  policy.allocator = allocator.make(policy.allocator_options);
  check_combination(policy, scorer);
  return policy;
}

/// A composition has its allocator already, be it by default.
[[noreturn]] void refuse_allocator(const Method& method, const std::string& allocator) {
  const Spelling meant = spell(method.policy);
  const std::string advice =
      meant.allocator ? "" : fmt::format("; write {}+{}:{}", meant.scorer, allocator, join(meant.options, ","));
  throw UsageError(
      fmt::format("policy '{}' stands for {} and takes no other allocator{}", method.name, method.policy, advice));
}

}  // namespace

Policy parse_policy(std::string_view text) {
  const std::string label = trim(text);
  const Spelling spelling = spell(label);
  if (spelling.scorer.empty()) throw UsageError("an empty policy; 'laprox policies' lists all");
  // A published method's name stands for a composition and its options.
  const Method* method = find_method(spelling.scorer);
  if (method && spelling.allocator) refuse_allocator(*method, *spelling.allocator);
  const Spelling composition = method ? spell(method->policy) : Spelling{};
  const Spelling& meant = method ? composition : spelling;
  const ScorerInfo& scorer = find_part(scorers(), "policy", meant.scorer);
  return assemble(label, spelling, meant, scorer, scorer.make);
}

Policy compose_policy(std::string_view text, std::shared_ptr<const Scorer> scorer,
                      const std::string& default_allocator) {
  const std::string label = trim(text);
  const Spelling spelling = spell(label);
  ScorerInfo info{};
  info.name = spelling.scorer;
  info.default_allocator = default_allocator;
  return assemble(label, spelling, spelling, info, [&](Options&) { return scorer; });
}

std::string to_string(const Policy& policy) {
  std::vector<std::string> pairs;
  for (const Options* options : {&policy.scorer_options, &policy.allocator_options}) {
    for (const auto& [name, value] : options->spelled_out()) pairs.push_back(name + "=" + value);
  }
  return fmt::format("{}+{}{}{}", policy.scorer_name, policy.allocator_name, pairs.empty() ? "" : ":",
                     join(pairs, ","));
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
