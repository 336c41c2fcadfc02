#include <fmt/format.h>
#include <fmt/ranges.h>

#include <sstream>

#include "arguments.h"
#include "catalogue.h"
#include "commands.h"
#include "laprox/methods.h"
#include "output.h"

namespace laprox::cli {

namespace {

std::string allowed(const OptionSpec& option) {
  if (option.kind == OptionSpec::Kind::choice) return fmt::format("{}", fmt::join(option.choices, "|"));
  if (option.kind == OptionSpec::Kind::boolean) return "true|false";
  if (option.kind == OptionSpec::Kind::numbers) {
    return fmt::format("{} .. {}, separated by /", option.minimum, option.maximum);
  }
  return fmt::format("{} .. {}", option.minimum, option.maximum);
}

/// Breaks a paragraph at spaces; every line begins with two.
std::string wrapped(const std::string& text) {
  constexpr std::size_t kWidth = 98;
  std::string lines, line;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (!line.empty() && line.size() + 1 + word.size() > kWidth) {
      lines += "  " + line + "\n";
      line.clear();
    }
    line += (line.empty() ? "" : " ") + word;
  }
  return lines + "  " + line + "\n";
}

template <class Info>
void print_part(const char* kind, const Info& info) {
  out(fmt::format("{} ({})\n  {}\n", info.name, kind, info.summary));
  if (!info.paper.empty()) out(fmt::format("  {}\n", info.paper));
  out(fmt::format("\n{}", wrapped(info.description)));
  if (!info.options.empty()) out(fmt::format("\nOptions:\n"));
  for (const OptionSpec& option : info.options) {
    out(fmt::format("  {}={}\n      {} ({})\n", option.name, option.fallback, option.help, allowed(option)));
  }
}

const char* yes_or_no(bool condition) { return condition ? "yes" : "no"; }

std::string nested(const ScorerInfo& info) {
  if (info.nested == is_nested(info)) return yes_or_no(info.nested);
  return fmt::format("no with the split {}, yes with a nested one", info.default_allocator);
}

/// True where a scorer of that name was described.
bool print_scorer(const std::string& name) {
  for (const ScorerInfo& info : scorers()) {
    if (info.name != name) continue;
    print_part("scorer", info);
    out(fmt::format(
        "\nReads: {}\nBudget split unless +allocator says otherwise: {}{}\nNested (a larger budget keeps all that a "
        "smaller one keeps): {}\n",
        info.needs, info.default_allocator, info.only_allocator.empty() ? "" : " (no other makes sense)",
        nested(info)));
    return true;
  }
  return false;
}

bool print_allocator(const std::string& name) {
  for (const AllocatorInfo& info : allocators()) {
    if (info.name != name) continue;
    print_part("allocator", info);
    out(fmt::format("\nA budget is shared by: {}\nNested (a larger budget gives no head fewer tokens): {}\n",
                    info.scope, yes_or_no(info.nested)));
    return true;
  }
  return false;
}

/// A name can stand for a scorer and an allocator (cake, lava), or for a published composition.
void print_one(const std::string& name) {
  if (const Method* method = find_method(name)) {
    out(fmt::format("{} = {}\n  {}\n  {}\n  Nested: {}\n\n", method->name, method->policy, method->summary,
                    method->paper, yes_or_no(method->nested)));
    const Policy policy = parse_policy(method->policy);
    print_scorer(policy.scorer_name);
    out(fmt::format("\n"));
    print_allocator(policy.allocator_name);
    return;
  }
  const bool scorer = print_scorer(name);
  if (scorer) out(fmt::format("\n"));
  if (!print_allocator(name) && !scorer) parse_policy(name);  // throws, with the nearest name
}

void print_all() {
  out(
      fmt::format("A policy is scorer[+allocator][:option=value,...], for example snapkv+ada:floor=0.2\n\n{}\n"
                  "Allocators, which split a budget:\n\n{}\n'laprox policies NAME' describes one.\n",
                  as_text(policy_table()), as_text(allocator_table())));
}

}  // namespace

void add_policies(CLI::App& app) {
  struct Arguments {
    std::string name, format;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("policies", "The catalogue: scorers, allocators and published methods");
  command->add_option("name", arguments->name, "describe one of them in full");
  add_format(*command, arguments->format, {"table", "markdown"});
  command->footer(R"(
Examples:
  laprox policies
  laprox policies snapkv
  laprox policies --format markdown)");
  command->callback([arguments] {
    if (!arguments->name.empty()) return print_one(arguments->name);
    if (arguments->format == "table") return print_all();
    out(fmt::format("{}\n{}", as_markdown(policy_table()), as_markdown(allocator_table())));
  });
}

}  // namespace laprox::cli
