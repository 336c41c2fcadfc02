#include "candidate.h"

#include <fmt/format.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <map>
#include <utility>

#include "laprox/error.h"

namespace laprox::python {

namespace {

using Masks = std::vector<std::vector<std::vector<std::uint8_t>>>;

struct Numbers {
  ElementType type;
  Matrix values;
};

Numbers numbers_of(const nb::handle& item) {
  const auto pair = nb::cast<nb::tuple>(item);
  const auto array = nb::cast<nb::ndarray<nb::ro, double, nb::ndim<2>, nb::c_contig, nb::device::cpu>>(pair[0]);
  const MatrixView<double> values(array.data(), static_cast<Index>(array.shape(0)), static_cast<Index>(array.shape(1)));
  return {element_type(nb::cast<std::string>(pair[1])), values};
}

Masks masks_of(const nb::handle& item) {
  const auto array = nb::cast<nb::ndarray<nb::ro, std::uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>>(item);
  Masks masks(array.shape(0));
  const std::uint8_t* next = array.data();
  for (auto& heads : masks) {
    for (std::size_t head = 0; head < array.shape(1); ++head, next += array.shape(2)) {
      heads.emplace_back(next, next + array.shape(2));
    }
  }
  return masks;
}

class ArrayCandidate : public Candidate {
 public:
  ArrayCandidate(const nb::dict& arrays, const nb::dict& kept, const std::vector<std::string>& budgets,
                 std::vector<Index> output_positions)
      : output_positions_(std::move(output_positions)) {
    for (const auto& [name, layers] : arrays) {
      for (const auto& [layer, item] : nb::cast<nb::dict>(layers)) {
        numbers_[nb::cast<std::string>(name)].emplace(nb::cast<Index>(layer), numbers_of(item));
      }
    }
    for (const auto& [layer, item] : kept) kept_.emplace(nb::cast<Index>(layer), masks_of(item));
    for (const std::string& budget : budgets) budgets_.push_back(parse_budget(budget));
  }

  std::string name() const override { return "candidate"; }
  const std::optional<std::string>& policy() const override { return policy_; }
  const std::optional<ElementType>& precision() const override { return precision_; }
  const std::vector<BudgetRequest>& budgets() const override { return budgets_; }
  const std::vector<Index>& output_positions() const override { return output_positions_; }

  bool has(Index layer, const std::string& array) const override {
    if (array == "kept") return kept_.count(layer) > 0;
    const auto found = numbers_.find(array);
    return found != numbers_.end() && found->second.count(layer) > 0;
  }
  bool has(const std::string& array) const override {
    return array == "kept" ? !kept_.empty() : numbers_.count(array) > 0;
  }
  ElementType type(Index layer, const std::string& array) const override { return numbers_.at(array).at(layer).type; }
  Matrix read(Index layer, const std::string& array) const override { return numbers_.at(array).at(layer).values; }
  Masks read_kept(Index layer) const override { return kept_.at(layer); }

  [[noreturn]] void refuse(const std::string& array, const std::string& expected,
                           const std::string& found) const override {
    throw UsageError(fmt::format("candidate: {}: expected {}, found {}", array, expected, found));
  }

 private:
  std::map<std::string, std::map<Index, Numbers>> numbers_;
  std::map<Index, Masks> kept_;
  std::vector<BudgetRequest> budgets_;
  std::vector<Index> output_positions_;
  std::optional<std::string> policy_;     // verify's argument says it
  std::optional<ElementType> precision_;  // likewise
};

}  // namespace

std::unique_ptr<Candidate> make_candidate(const nb::dict& arrays, const nb::dict& kept,
                                          const std::vector<std::string>& budgets,
                                          std::vector<Index> output_positions) {
  return std::make_unique<ArrayCandidate>(arrays, kept, budgets, std::move(output_positions));
}

}  // namespace laprox::python
