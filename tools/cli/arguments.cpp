#include "arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <sstream>

#include "laprox/cuda.h"
#include "laprox/error.h"
#include "laprox/methods.h"
#include "render.h"

namespace laprox::cli {

namespace {

std::unique_ptr<Backend> make_cuda([[maybe_unused]] int threads) {
#ifdef LAPROX_CUDA
  return make_cuda_backend(0, threads);
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
  command.add_option("--threads", threads, "CPU threads; 0: all. Results do not depend on it")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

std::unique_ptr<Backend> BackendArguments::make() const {
  if (name == "cpu") return make_cpu_backend(threads);
  if (name == "reference") return make_reference_backend();
  if (name == "cuda") return make_cuda(threads);
  throw UsageError(fmt::format("unknown backend '{}'; known are cpu, cuda and reference", name));
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

void add_table_options(CLI::App& command, TableOptions& table) {
  const std::vector<std::string> known = table_metrics();
  command.add_option("--metric", table.metric, fmt::format("of the table: {}", fmt::join(known, ", ")))
      ->check(CLI::IsMember(known))
      ->transform([](std::string name) {
        std::replace(name.begin(), name.end(), '-', '_');
        return name;
      })
      ->capture_default_str();
  command.add_flag("--summary", table.summary,
                   "over several dumps: median and quartiles instead of mean and standard deviation");
  command.add_option("--compare", table.compare,
                     "two policies, A,B: their paired difference over the dumps at each budget, its confidence "
                     "interval, and in how many dumps A is below B");
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
      if (other.text == budget.text) throw UsageError(fmt::format("budget '{}' is given twice", budget.text));
    }
    budgets.push_back(std::move(budget));
  }
  return budgets;
}

}  // namespace laprox::cli
