#include "laprox/options.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "laprox/error.h"

namespace laprox {

namespace {

std::string allowed(const OptionSpec& spec) {
  switch (spec.kind) {
    case OptionSpec::Kind::integer:
      return fmt::format("an integer from {} to {}", spec.minimum, spec.maximum);
    case OptionSpec::Kind::real:
      return fmt::format("a number from {} to {}", spec.minimum, spec.maximum);
    case OptionSpec::Kind::boolean:
      return "true or false";
    case OptionSpec::Kind::choice:
      return "one of " + join(spec.choices, ", ");
    case OptionSpec::Kind::numbers:
      return fmt::format("numbers from {} to {}, separated by /", spec.minimum, spec.maximum);
  }
  throw Bug("unknown option kind");
}

/// The canonical spelling of a value, or an empty text where it does not fit.
std::string canonical(const OptionSpec& spec, std::string_view value) {
  const auto in_range = [&](double x) { return x >= spec.minimum && x <= spec.maximum; };
  switch (spec.kind) {
    case OptionSpec::Kind::integer: {
      const auto number = parse_integer(value);
      return number && in_range(static_cast<double>(*number)) ? std::to_string(*number) : "";
    }
    case OptionSpec::Kind::real: {
      const auto number = parse_real(value);
      return number && in_range(*number) ? fmt::format("{}", *number) : "";
    }
    case OptionSpec::Kind::boolean: {
      const std::string word = kebab(value);
      if (word == "true" || word == "1" || word == "yes" || word == "on") return "true";
      if (word == "false" || word == "0" || word == "no" || word == "off") return "false";
      return "";
    }
    case OptionSpec::Kind::choice: {
      const std::string word = kebab(value);
      return std::find(spec.choices.begin(), spec.choices.end(), word) != spec.choices.end() ? word : "";
    }
    case OptionSpec::Kind::numbers: {
      std::vector<std::string> words;
      for (const std::string& part : split(value, '/')) {
        const auto number = parse_real(trim(part));
        if (!number || !in_range(*number)) return "";
        words.push_back(fmt::format("{}", *number));
      }
      return join(words, "/");
    }
  }
  throw Bug("unknown option kind");
}

}  // namespace

OptionSpec OptionSpec::integer(std::string name, Index fallback, Index minimum, Index maximum, std::string help) {
  return {std::move(name),
          Kind::integer,
          std::to_string(fallback),
          static_cast<double>(minimum),
          static_cast<double>(maximum),
          {},
          std::move(help)};
}

OptionSpec OptionSpec::real(std::string name, double fallback, double minimum, double maximum, std::string help) {
  return {std::move(name), Kind::real, fmt::format("{}", fallback), minimum, maximum, {}, std::move(help)};
}

OptionSpec OptionSpec::boolean(std::string name, bool fallback, std::string help) {
  return {std::move(name), Kind::boolean, fallback ? "true" : "false", 0, 0, {}, std::move(help)};
}

OptionSpec OptionSpec::choice(std::string name, std::string fallback, std::vector<std::string> choices,
                              std::string help) {
  return {std::move(name), Kind::choice, std::move(fallback), 0, 0, std::move(choices), std::move(help)};
}

OptionSpec OptionSpec::numbers(std::string name, std::string fallback, double minimum, double maximum,
                               std::string help) {
  return {std::move(name), Kind::numbers, std::move(fallback), minimum, maximum, {}, std::move(help)};
}

Options::Options(const std::vector<OptionSpec>& specs) {
  for (const OptionSpec& spec : specs) {
    order_.push_back(spec.name);
    values_[spec.name] = spec.fallback;
  }
}

void Options::set(const OptionSpec& spec, std::string_view value, std::string_view owner) {
  const std::string text = canonical(spec, value);
  if (text.empty()) {
    throw UsageError(fmt::format("{}: option {}: expected {}, found '{}'", owner, spec.name, allowed(spec), value));
  }
  values_.at(spec.name) = text;
  if (!given(spec.name)) given_.push_back(spec.name);
}

void Options::settle(std::string_view name, std::string value) {
  const auto found = values_.find(name);
  require(found != values_.end(), fmt::format("option {} is declared", name));
  found->second = std::move(value);
}

const std::string& Options::text(std::string_view name) const {
  const auto found = values_.find(name);
  require(found != values_.end(), fmt::format("option {} is declared", name));
  return found->second;
}

Index Options::integer(std::string_view name) const { return static_cast<Index>(parse_integer(text(name)).value()); }

double Options::real(std::string_view name) const { return parse_real(text(name)).value(); }

std::vector<double> Options::numbers(std::string_view name) const {
  std::vector<double> values;
  for (const std::string& part : split(text(name), '/')) values.push_back(parse_real(part).value());
  return values;
}

bool Options::boolean(std::string_view name) const { return text(name) == "true"; }

bool Options::given(std::string_view name) const {
  return std::find(given_.begin(), given_.end(), name) != given_.end();
}

std::vector<std::pair<std::string, std::string>> Options::spelled_out() const {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const std::string& name : order_) pairs.emplace_back(name, values_.at(name));
  return pairs;
}

}  // namespace laprox
