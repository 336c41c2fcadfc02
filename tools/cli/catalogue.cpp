#include "catalogue.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "laprox/methods.h"
#include "laprox/policy.h"

namespace laprox::cli {

namespace {

constexpr std::size_t kSummaryColumn = 3;

std::string option_list(const std::vector<OptionSpec>& options) {
  std::vector<std::string> pairs;
  for (const OptionSpec& option : options) pairs.push_back(option.name + "=" + option.fallback);
  return fmt::format("{}", fmt::join(pairs, " "));
}

/// "SnapKV, 2024, arXiv 2404.14469" -> year and reference; a part that a paper does not have is empty.
struct Citation {
  explicit Citation(const std::string& paper) {
    const std::size_t comma = paper.find(", 20");
    if (comma == std::string::npos) return;
    year = paper.substr(comma + 2, 4);
    const std::size_t rest = comma + 6;
    reference = paper.size() > rest + 2 && paper[rest] == ',' ? paper.substr(rest + 2) : paper.substr(0, comma);
  }
  std::string year, reference;
};

std::string yes(bool condition) { return condition ? "yes" : "no"; }

std::vector<std::string> row(const std::string& name, const std::string& paper, const std::string& summary,
                             const std::string& needs, const std::string& split, bool nested,
                             const std::string& options) {
  const Citation citation(paper);
  return {name, citation.year, citation.reference, summary, needs, split, yes(nested), options};
}

bool nested_split(const std::string& allocator) {
  const auto found = std::find_if(allocators().begin(), allocators().end(), [&](const AllocatorInfo& info) {
    return info.name == allocator.substr(0, allocator.find(':'));
  });
  return found->nested;
}

}  // namespace

bool is_nested(const ScorerInfo& info) { return info.nested && nested_split(info.default_allocator); }

TextTable policy_table() {
  TextTable table{{"policy", "year", "paper", "what it keeps", "reads", "split", "nested", "options"}};
  for (const ScorerInfo& info : scorers()) {
    table.push_back(row(info.name, info.paper, info.summary, info.needs, info.default_allocator, is_nested(info),
                        option_list(info.options)));
  }
  for (const Method& method : methods()) {
    const Policy policy = parse_policy(method.policy);
    const auto scorer = std::find_if(scorers().begin(), scorers().end(),
                                     [&](const ScorerInfo& info) { return info.name == policy.scorer_name; });
    const bool has_split = method.policy.find('+') != std::string::npos;
    table.push_back(row(method.name, method.paper, method.summary, scorer->needs,
                        has_split ? policy.allocator_name : scorer->default_allocator, method.nested,
                        "= " + method.policy));
  }
  return table;
}

TextTable allocator_table() {
  TextTable table{{"allocator", "year", "paper", "how it splits", "a budget is shared by", "nested", "options"}};
  for (const AllocatorInfo& info : allocators()) {
    const Citation citation(info.paper);
    table.push_back({info.name, citation.year, citation.reference, info.summary, info.scope, yes(info.nested),
                     option_list(info.options)});
  }
  return table;
}

std::string as_text(const TextTable& table) {
  std::vector<std::size_t> widths(table[0].size());
  for (const auto& cells : table) {
    for (std::size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  std::string text;
  for (const auto& cells : table) {
    std::string line;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      if (i != kSummaryColumn) line += fmt::format("{:<{}}  ", cells[i], i + 1 == cells.size() ? 0 : widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string as_markdown(const TextTable& table) {
  std::string text;
  for (std::size_t n = 0; n < table.size(); ++n) {
    for (std::size_t i = 0; i < table[n].size(); ++i) {
      std::string cell = table[n][i];
      for (std::size_t at = 0; (at = cell.find('|', at)) != std::string::npos; at += 2) cell.insert(at, 1, '\\');
      const bool code = n > 0 && !cell.empty() && (i == 0 || i + 1 == table[n].size());
      text += code ? fmt::format("| `{}` ", cell) : fmt::format("| {} ", cell);
    }
    text += "|\n";
    if (n > 0) continue;
    for (std::size_t i = 0; i < table[n].size(); ++i) text += "|---";
    text += "|\n";
  }
  return text;
}

}  // namespace laprox::cli
