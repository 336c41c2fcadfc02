#include "arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "laprox/cuda.h"
#include "laprox/error.h"
#include "laprox/methods.h"
#include "output.h"
#include "render.h"

namespace laprox::cli {

namespace {

std::unique_ptr<Backend> make_cuda([[maybe_unused]] std::optional<int> device, [[maybe_unused]] int threads,
                                   [[maybe_unused]] Index turn) {
#ifdef LAPROX_CUDA
  const int devices = cuda_devices();
  return make_cuda_backend(device.value_or(devices > 0 ? static_cast<int>(turn % devices) : 0), threads);
#else
  throw BackendError(
      "this laprox was built without its CUDA backend; with nvcc installed, 'cmake --preset cuda && cmake --build "
      "build/cuda' builds one that has it");
#endif
}

}  // namespace

void BackendArguments::add_to(CLI::App& command) {
  command
      .add_option("--backend", name,
                  "cpu (float32, fast), cuda (NVIDIA GPU) or reference (float64, plain equations, slow)")
      ->capture_default_str();
  command
      .add_option(
          "--device", device,
          "the GPU of --backend cuda, counted from 0 (default: 0; of several processes on one machine each takes "
          "the next)")
      ->check(CLI::Range(0, 1024));
  command.add_option("--threads", threads, "CPU threads; 0: all. Results do not depend on it")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

std::unique_ptr<Backend> BackendArguments::make(const Ranks& ranks) const {
  if (device && name != "cuda") throw UsageError("--device chooses a GPU: give --backend cuda too, or leave it out");
  if (name == "cpu") return make_cpu_backend(threads);
  if (name == "reference") return make_reference_backend();
  if (name == "cuda") return make_cuda(device, threads, ranks.rank_on_machine());
  throw UsageError(fmt::format("unknown backend '{}'; known are cpu, cuda and reference", name));
}

namespace {

std::vector<std::string> listed_paths(const std::string& list) {
  std::error_code ignored;
  std::ifstream file;
  if (std::filesystem::is_regular_file(list, ignored)) file.open(list);  // a pipe or a device may never end
  if (!file.is_open()) {
    throw FileError(
        fmt::format("@{}: expected a text file with a path on each line, found none that can be read", list));
  }
  std::vector<std::string> paths;
  for (std::string line; std::getline(file, line);) {
    if (line.find('\0') != std::string::npos) {
      throw FileError(fmt::format("@{}: expected a text file with a path on each line, found binary data", list));
    }
    if (paths.empty() && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);  // the mark of UTF-8 of some editors
    line = line.substr(0, line.find('#'));
    const auto first = line.find_first_not_of(" \t\r"), last = line.find_last_not_of(" \t\r");
    if (first != std::string::npos) paths.push_back(line.substr(first, last - first + 1));
  }
  if (paths.empty()) throw UsageError(fmt::format("@{}: expected a path on each line, found none", list));
  return paths;
}

std::vector<std::string> matching_paths(const std::string& pattern) {
  glob_t found{};
  const int status = glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<std::string> paths;
  for (std::size_t i = 0; status == 0 && i < found.gl_pathc; ++i) paths.emplace_back(found.gl_pathv[i]);
  globfree(&found);
  if (paths.empty()) throw FileError(pattern + ": no file matches");
  return paths;
}

}  // namespace

std::vector<std::filesystem::path> list_files(const std::vector<std::string>& words) {
  std::vector<std::filesystem::path> lists;
  for (const std::string& word : words) {
    if (word.size() > 1 && word[0] == '@') lists.emplace_back(word.substr(1));
  }
  return lists;
}

std::vector<std::string> expand_paths(const std::vector<std::string>& words) {
  std::vector<std::string> paths;
  for (const std::string& word : words) {
    std::error_code ignored;
    std::vector<std::string> more{word};
    if (word.size() > 1 && word[0] == '@') {
      more = listed_paths(word.substr(1));
    } else if (word.find_first_of("*?[") != std::string::npos && !std::filesystem::exists(word, ignored)) {
      more = matching_paths(word);
    }
    paths.insert(paths.end(), more.begin(), more.end());
  }
  return paths;
}

CLI::Validator text_file() {
  return CLI::Validator(
      [](std::string& name) {
        std::error_code ignored;
        const auto status = std::filesystem::status(name, ignored);
        if (!std::filesystem::exists(status) || std::filesystem::is_regular_file(status)) return std::string();
        return fmt::format("{}: expected a text file, found what is no regular file", name);
      },
      "FILE");
}

CLI::Validator file_name() {
  return CLI::Validator([](std::string& name) { return name.empty() ? "expected a file name, found nothing" : ""; },
                        "FILE");
}

void add_format(CLI::App& command, std::string& format, const std::vector<std::string>& known) {
  format = known.front();
  command.add_option("--format", format, fmt::format("{}", fmt::join(known, ", ")))
      ->check(CLI::IsMember(known))
      ->capture_default_str();
}

ElementType parse_element_type(const std::string& name, const std::string& option) {
  for (ElementType type : {ElementType::float16, ElementType::bfloat16, ElementType::float32, ElementType::float64}) {
    if (to_string(type) == name) return type;
  }
  throw UsageError(fmt::format("{}: unknown element type '{}'", option, name));
}

void add_metric(CLI::App& command, TableOptions& table) {
  const std::vector<std::string> known = table_metrics();
  command.add_option("--metric", table.metric, fmt::format("of the table: {}", fmt::join(known, ", ")))
      ->check(CLI::IsMember(known))
      ->transform([](std::string name) {
        std::replace(name.begin(), name.end(), '-', '_');
        return name;
      })
      ->capture_default_str();
}

void add_table_options(CLI::App& command, TableOptions& table) {
  add_metric(command, table);
  command.add_flag("--summary", table.summary,
                   "over several dumps: median and quartiles instead of mean and standard deviation");
  command.add_option("--compare", table.compare,
                     "two policies, A,B: their paired difference over the dumps at each budget, its confidence "
                     "interval, and in how many dumps A is below B");
}

void note_idle_table_options(const CLI::App& command, const std::string& format) {
  if (format == "table") return;
  for (const char* option : {"--metric", "--summary", "--compare"}) {
    if (command.count(option) == 0) continue;
    note(fmt::format("laprox: {} shapes the table; with --format {} it does nothing", option, format));
  }
}

namespace {

/// `all` stands for every scorer with its published split, and every published composition.
std::vector<std::string> with_catalogue(const std::vector<std::string>& words, std::set<std::string>* of_all) {
  std::vector<std::string> texts;
  for (const std::string& word : words) {
    const std::size_t before = texts.size();
    if (word != "all") {
      texts.push_back(word);
      continue;
    }
    for (const ScorerInfo& info : scorers()) texts.push_back(info.name);
    for (const Method& method : methods()) texts.push_back(method.name);
    if (of_all) of_all->insert(texts.begin() + static_cast<std::ptrdiff_t>(before), texts.end());
  }
  return texts;
}

}  // namespace

std::vector<Policy> parse_policies(const std::vector<std::string>& words, std::set<std::string>* of_all) {
  std::vector<Policy> policies;
  // Words are joined first, because a configuration file splits "laprox:gqa=frobenius,pool=max" at its comma.
  for (const std::string& text : with_catalogue(split_policies(fmt::format("{}", fmt::join(words, ","))), of_all)) {
    Policy policy = parse_policy(text);
    for (const Policy& other : policies) {
      if (other.label == policy.label || other == policy) {
        throw UsageError(fmt::format("policy '{}' is given twice (as '{}' too)", policy.label, other.label));
      }
    }
    policies.push_back(std::move(policy));
  }
  return policies;
}

std::vector<BudgetRequest> parse_budgets(const std::vector<std::string>& words) {
  std::vector<BudgetRequest> budgets;
  std::istringstream list(fmt::format("{}", fmt::join(words, ",")));
  for (std::string text; std::getline(list, text, ',');) {
    BudgetRequest budget = parse_budget(text);
    for (const BudgetRequest& other : budgets) {
      if (other.unit == budget.unit && other.amount == budget.amount)
        throw UsageError(fmt::format("budget '{}' is given twice (as '{}' too)", budget.text, other.text));
    }
    budgets.push_back(std::move(budget));
  }
  return budgets;
}

}  // namespace laprox::cli
