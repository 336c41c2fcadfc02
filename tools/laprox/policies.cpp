#include <fmt/format.h>
#include <fmt/ranges.h>

#include "arguments.h"
#include "commands.h"
#include "laprox/error.h"
#include "render.h"

namespace laprox::cli {

namespace {

std::string allowed(const OptionSpec& option) {
  if (option.kind == OptionSpec::Kind::choice) return fmt::format("{}", fmt::join(option.choices, "|"));
  if (option.kind == OptionSpec::Kind::boolean) return "true|false";
  return fmt::format("{} .. {}", option.minimum, option.maximum);
}

void print_options(const std::vector<OptionSpec>& options) {
  for (const OptionSpec& option : options) {
    fmt::print("  {}={}\n      {} ({})\n", option.name, option.fallback, option.help, allowed(option));
  }
}

template <class Info>
void print_part(const char* kind, const Info& info) {
  fmt::print("{} ({})\n  {}\n", info.name, kind, info.summary);
  if (!info.paper.empty()) fmt::print("  {}\n", info.paper);
  fmt::print("\n  {}\n", info.description);
  if (!info.options.empty()) fmt::print("\nOptions:\n");
  print_options(info.options);
}

void print_one(const std::string& name) {
  for (const ScorerInfo& info : scorers()) {
    if (info.name != name) continue;
    print_part("policy", info);
    fmt::print("\nBudget split unless +allocator says otherwise: {}\n", info.default_allocator);
    return;
  }
  for (const AllocatorInfo& info : allocators()) {
    if (info.name == name) return print_part("allocator", info);
  }
  parse_policy(name);  // throws, with the nearest name
}

template <class Info>
void print_list(const std::vector<Info>& registry) {
  std::vector<std::vector<std::string>> rows;
  for (const Info& info : registry) {
    fmt::print("  {:<11} {}\n", info.name, info.summary);
    if (!info.paper.empty()) fmt::print("  {:<11} {}\n", "", info.paper);
    std::vector<std::string> options;
    for (const OptionSpec& option : info.options) options.push_back(option.name + "=" + option.fallback);
    if (!options.empty()) fmt::print("  {:<11} options: {}\n", "", fmt::join(options, ", "));
  }
}

void print_all() {
  fmt::print("A policy is scorer[+allocator][:option=value,...], for example snapkv+ada:floor=0.2\n\nScorers:\n");
  print_list(scorers());
  fmt::print("\nAllocators (how a budget is split):\n");
  print_list(allocators());
  fmt::print(
      "\nPublished methods: laprox (global), laprox+layer, laprox+head, snapkv, snapkv+ada (AdaKV), h2o, streaming\n"
      "'laprox policies NAME' describes one.\n");
}

}  // namespace

void add_policies(CLI::App& app) {
  auto name = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("policies", "List the scorers and allocators with their options and papers");
  command->add_option("name", *name, "describe one scorer or allocator");
  command->footer("\nExamples:\n  laprox policies\n  laprox policies snapkv");
  command->callback([name] { name->empty() ? print_all() : print_one(*name); });
}

}  // namespace laprox::cli
