#include "verify/assess.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include "laprox/error.h"

namespace laprox::verify {

namespace {

constexpr double kFactor = 2;         ///< how many times the error of a plain evaluation
constexpr double kFloor = 1e-5;       ///< of the scale: below this no error counts
constexpr double kNeighbourhood = 4;  ///< elements of up to this many times the size lend their plain error

enum PartIndex : std::size_t { kFinite, kElement, kNorm, kCosine };

using Row = Eigen::RowVectorXd;

/// The smaller of the yardstick and the cap, plus the floor.
struct Allowance {
  Allowance(double yardstick, double cap, double floor) : capped(!(yardstick <= cap)) {
    value = (capped ? cap : yardstick) + floor;
  }
  double value;
  bool capped;
};

/// The angle between two vectors of the same length, in radians.
double angle(const Row& a, const Row& b) {
  if (a.norm() == 0 || b.norm() == 0) return a.norm() == b.norm() ? 0 : std::numbers::pi / 2;
  const double chord = (a / a.norm() - b / b.norm()).norm();
  return 2 * std::asin(std::min(1.0, chord / 2));
}

/// The errors of the plain evaluations on the rows of one head.
class PlainErrors {
 public:
  PlainErrors(const Values& values, Index first_row, Index rows) : known_(!values.plain.empty()) {
    std::vector<std::pair<double, double>> elements;  // size, error
    of_row_.assign(static_cast<std::size_t>(rows), 0);
    for (Index row = first_row; row < first_row + rows; ++row) {
      for (const Matrix* plain : values.plain) {
        const Row expected = values.assessed(values.expected, row), found = values.assessed(*plain, row);
        add(found, expected, elements);
        if (values.positions.empty() || expected.size() == 0) continue;
        double& largest = of_row_[static_cast<std::size_t>(row - first_row)];
        largest = std::max(largest, (found - expected).cwiseAbs().maxCoeff());
      }
    }
    std::sort(elements.begin(), elements.end());
    double largest = 0;
    for (const auto& [size, error] : elements) {
      largest = std::max(largest, error);
      sizes_.push_back(size);
      errors_.push_back(largest);
    }
  }

  /// The largest error on elements of up to kNeighbourhood times the size, and of an output on its row, counted from
  /// the first.
  double element(double size, Index row) const {
    if (!known_) return kUnknown;
    const auto after = std::upper_bound(sizes_.begin(), sizes_.end(), kNeighbourhood * size);
    const double alike = after == sizes_.begin() ? 0 : errors_[static_cast<std::size_t>(after - sizes_.begin()) - 1];
    return std::max(alike, of_row_[static_cast<std::size_t>(row)]);
  }
  double relative_norm() const { return known_ ? norm_ : kUnknown; }
  double angle_to_expected() const { return known_ ? angle_ : kUnknown; }

 private:
  static constexpr double kUnknown = std::numeric_limits<double>::infinity();

  void add(const Row& plain, const Row& expected, std::vector<std::pair<double, double>>& elements) {
    const double norm = expected.norm();
    if (norm > 0) norm_ = std::max(norm_, (plain - expected).norm() / norm);
    angle_ = std::max(angle_, angle(plain, expected));
    for (Index i = 0; i < plain.size(); ++i) {
      elements.emplace_back(std::abs(expected[i]), std::abs(plain[i] - expected[i]));
    }
  }

  bool known_;
  double norm_ = 0, angle_ = 0;
  std::vector<double> sizes_, errors_;  ///< ascending sizes, and the largest error up to each
  std::vector<double> of_row_;          ///< the largest error of a row; 0 where rows are no outputs
};

/// One row under assessment, its non-finite elements set to what is expected: they have been counted.
class RowAssessor {
 public:
  RowAssessor(const Values& values, const PlainErrors& plain, const Precision& precision, Index row, double scale)
      : plain_(plain),
        precision_(precision),
        scale_(scale),
        weight_error_(values.weight_error),
        first_(values.first),
        expected_(values.assessed(values.expected, row)),
        found_(values.assessed(values.found, row)) {
    for (Index i = 0; i < elements(); ++i) {
      if (!std::isfinite(found_[i])) found_[i] = expected_[i];
    }
  }

  Index elements() const { return expected_.size(); }

  /// The element whose error is the largest share of what is allowed.
  /// row_of_head: counted from the head's first.
  void assess_elements(VerdictPart part, Index row_of_head, ValueCheck& check) const {
    const double cap = kCap * expected_.cwiseAbs().maxCoeff();
    for (Index i = 0; i < elements(); ++i) {
      const double size = std::abs(expected_[i]), error = std::abs(found_[i] - expected_[i]);
      const double ulp = precision_.ulp(size);
      const Allowance allowed(kFactor * plain_.element(size, row_of_head) + ulp + weight_error_ * size, cap,
                              kFloor * scale_);
      part.excess = excess(error, allowed.value);
      if (part.excess > 1) check.failing.add(part.layer, part.row, first_ + i, found_[i], expected_[i]);
      if (part.excess <= check.parts[kElement].excess) continue;
      part.measured = error;
      part.allowed = allowed.value;
      part.capped = allowed.capped;
      part.column = first_ + i;
      keep_worst(check.parts[kElement], part);
      check.worst = {found_[i], expected_[i], error / ulp};
    }
  }

  void assess_norm(VerdictPart part, ValueCheck& check) const {
    const double norm = expected_.norm(), error = (found_ - expected_).norm();
    const double yardstick = kFactor * plain_.relative_norm() + precision_.unit_roundoff() + weight_error_;
    const Allowance allowed(norm > 0 ? yardstick * norm : 0, kCap * norm, floor());
    part.excess = excess(error, allowed.value);
    part.measured = error > 0 ? error / norm : 0;
    part.allowed = allowed.value > 0 ? allowed.value / norm : 0;
    part.capped = allowed.capped;
    keep_worst(check.parts[kNorm], part);
  }

  void assess_cosine(VerdictPart part, ValueCheck& check) const {
    const double norm = expected_.norm();
    if (norm == 0) return;  // no direction; the other parts assess it
    const double yardstick = kFactor * plain_.angle_to_expected() + precision_.unit_roundoff() + weight_error_;
    const Allowance allowed(yardstick, kCap, floor() / norm);
    const double measured = angle(found_, expected_);
    part.excess = excess(measured, allowed.value);
    part.measured = std::cos(measured);
    part.allowed = std::cos(std::min(allowed.value, std::numbers::pi));
    part.capped = allowed.capped;
    keep_worst(check.parts[kCosine], part);
  }

 private:
  /// What an error of the floor in every element adds up to.
  double floor() const { return kFloor * scale_ * std::sqrt(static_cast<double>(elements())); }

  const PlainErrors& plain_;
  const Precision& precision_;
  double scale_, weight_error_;
  Index first_;
  Row expected_, found_;
};

/// NaN where NaN is expected, each infinity where it is: the rest is counted.
void assess_finite(const Values& values, Index layer, ValueCheck& check) {
  VerdictPart& part = check.parts[kFinite];
  for (Index row = 0; row < values.found.rows(); ++row) {
    for (Index column = 0; column < values.found.cols(); ++column) {
      const double found = values.found(row, column), expected = values.expected(row, column);
      const bool same = std::isnan(expected)   ? std::isnan(found)
                        : std::isinf(expected) ? found == expected
                                               : std::isfinite(found);
      if (same) continue;
      if (part.measured == 0) {
        part.layer = layer, part.row = values.place_of(row), part.column = column;
      }
      part.measured += 1;
      part.passed = false;
      part.excess = std::numeric_limits<double>::infinity();
      check.failing.add(layer, values.place_of(row), column, found, expected);
    }
  }
}

}  // namespace

void check_own_caches(const DumpInfo& dump) {
  if (!dump.shares_caches()) return;
  throw UsageError(fmt::format("{}: some layers read one KV cache; verify takes dumps whose layers have one each",
                               dump.path.string()));
}

double excess(double measured, double allowed) {
  if (measured == 0) return 0;
  return allowed > 0 ? measured / allowed : std::numeric_limits<double>::infinity();
}

void keep_worst(VerdictPart& worst, const VerdictPart& found) {
  if (found.excess <= worst.excess) return;
  const std::string name = worst.name;
  worst = found;
  worst.name = name;
  worst.passed = found.excess <= 1;
}

ValueCheck make_value_check(std::string name, std::string policy, std::string rows, std::string columns,
                            const Precision& precision) {
  ValueCheck check{
      std::move(name), std::move(policy), std::move(rows), std::move(columns), precision.type(), 0, {}, {}, {}};
  for (const char* part : {"finite", "element", "relative L2", "cosine"}) check.parts.push_back({.name = part});
  return check;
}

void assess_values(const Values& values, const Precision& precision, Index layer, ValueCheck& check) {
  assess_finite(values, layer, check);
  const double scale = values.expected.size() > 0 ? values.expected.cwiseAbs().maxCoeff() : 0;
  const Index together = values.rows_per_head > 0 ? values.rows_per_head : values.expected.rows();
  for (Index first = 0; first < values.expected.rows(); first += together) {
    const PlainErrors plain(values, first, together);
    for (Index row = first; row < first + together; ++row) {
      const RowAssessor assessor(values, plain, precision, row, scale);
      if (assessor.elements() == 0) continue;
      check.elements += assessor.elements();
      const VerdictPart place{.layer = layer, .row = values.place_of(row)};
      assessor.assess_elements(place, row - first, check);
      assessor.assess_norm(place, check);
      assessor.assess_cosine(place, check);
    }
  }
}

}  // namespace laprox::verify
