#include "verify/judge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <optional>

namespace laprox::verify {

namespace {

constexpr double kFactor = 2;        ///< how many times the error of a plain evaluation
constexpr double kFloor = 1e-5;      ///< of the scale: below this no error counts
constexpr double kCap = 0.2;         ///< beyond this a plain evaluation is no yardstick
constexpr double kNeighbourhood = 4; ///< elements of up to this many times the size lend their plain error

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

/// One row under judgement, its non-finite elements set to what is expected: they have been counted.
class RowJudge {
 public:
  RowJudge(const Values& values, const Precision& precision, Index row, double scale)
      : precision_(precision), scale_(scale), first_(values.first) {
    const Index count = (values.last < 0 ? values.expected.cols() : values.last) - values.first;
    expected_ = values.expected.row(row).segment(values.first, count);
    found_ = values.found.row(row).segment(values.first, count);
    for (Index i = 0; i < count; ++i) {
      if (!std::isfinite(found_[i])) found_[i] = expected_[i];
    }
    if (values.plain) plain_ = values.plain->row(row).segment(values.first, count);
  }

  Index elements() const { return expected_.size(); }

  /// The element whose error is the largest share of what is allowed.
  void judge_elements(VerdictPart part, ValueCheck& check) const {
    const std::vector<double> yardsticks = plain_errors();
    const double cap = kCap * expected_.cwiseAbs().maxCoeff();
    for (Index i = 0; i < elements(); ++i) {
      const double error = std::abs(found_[i] - expected_[i]), ulp = precision_.ulp(expected_[i]);
      const Allowance allowed(kFactor * yardsticks[static_cast<std::size_t>(i)] + ulp, cap, kFloor * scale_);
      part.excess = excess(error, allowed.value);
      if (part.excess <= check.parts[kElement].excess) continue;
      part.measured = error;
      part.allowed = allowed.value;
      part.capped = allowed.capped;
      part.column = first_ + i;
      keep_worst(check.parts[kElement], part);
      check.worst = {found_[i], expected_[i], error / ulp};
    }
  }

  void judge_norm(VerdictPart part, ValueCheck& check) const {
    const double norm = expected_.norm(), error = (found_ - expected_).norm();
    const double yardstick = plain_ ? kFactor * (*plain_ - expected_).norm() + precision_.unit_roundoff() * norm
                                    : std::numeric_limits<double>::infinity();
    const Allowance allowed(yardstick, kCap * norm, floor());
    part.excess = excess(error, allowed.value);
    part.measured = error > 0 ? error / norm : 0;
    part.allowed = allowed.value > 0 ? allowed.value / norm : 0;
    part.capped = allowed.capped;
    keep_worst(check.parts[kNorm], part);
  }

  void judge_cosine(VerdictPart part, ValueCheck& check) const {
    const double norm = expected_.norm();
    if (norm == 0) return;  // no direction; the other parts judge it
    const double yardstick =
        plain_ ? kFactor * angle(*plain_) + precision_.unit_roundoff() : std::numeric_limits<double>::infinity();
    const Allowance allowed(yardstick, kCap, floor() / norm);
    const double measured = angle(found_);
    part.excess = excess(measured, allowed.value);
    part.measured = std::cos(measured);
    part.allowed = std::cos(std::min(allowed.value, std::numbers::pi));
    part.capped = allowed.capped;
    keep_worst(check.parts[kCosine], part);
  }

 private:
  /// What an error of the floor in every element adds up to.
  double floor() const { return kFloor * scale_ * std::sqrt(static_cast<double>(elements())); }

  double angle(const Row& vector) const {
    if (vector.norm() == 0) return std::numbers::pi / 2;
    const double chord = (vector / vector.norm() - expected_ / expected_.norm()).norm();
    return 2 * std::asin(std::min(1.0, chord / 2));
  }

  /// For every element the largest plain error among the elements of up to kNeighbourhood times its size.
  std::vector<double> plain_errors() const {
    const auto count = static_cast<std::size_t>(elements());
    if (!plain_) return std::vector<double>(count, std::numeric_limits<double>::infinity());
    std::vector<Index> order(count);
    std::iota(order.begin(), order.end(), Index{0});
    std::sort(order.begin(), order.end(), [&](Index a, Index b) { return size(a) < size(b); });
    std::vector<double> errors(count);
    double largest = 0;
    std::size_t next = 0;
    for (const Index i : order) {
      for (; next < count && size(order[next]) <= kNeighbourhood * size(i); ++next) {
        largest = std::max(largest, std::abs((*plain_)[order[next]] - expected_[order[next]]));
      }
      errors[static_cast<std::size_t>(i)] = largest;
    }
    return errors;
  }
  double size(Index i) const { return std::abs(expected_[i]); }

  const Precision& precision_;
  double scale_;
  Index first_;
  Row expected_, found_;
  std::optional<Row> plain_;
};

/// NaN where NaN is expected, each infinity where it is: the rest is counted.
void judge_finite(const Values& values, Index layer, ValueCheck& check) {
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
    }
  }
}

}  // namespace

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
  ValueCheck check{std::move(name), std::move(policy), std::move(rows), std::move(columns), precision.type(), 0, {}, {}};
  for (const char* part : {"finite", "element", "relative L2", "cosine"}) check.parts.push_back({.name = part});
  return check;
}

void judge_values(const Values& values, const Precision& precision, Index layer, ValueCheck& check) {
  judge_finite(values, layer, check);
  const double scale = values.expected.size() > 0 ? values.expected.cwiseAbs().maxCoeff() : 0;
  for (Index row = 0; row < values.expected.rows(); ++row) {
    const RowJudge judge(values, precision, row, scale);
    if (judge.elements() == 0) continue;
    check.elements += judge.elements();
    const VerdictPart place{.layer = layer, .row = values.place_of(row)};
    judge.judge_elements(place, check);
    judge.judge_norm(place, check);
    judge.judge_cosine(place, check);
  }
}

}  // namespace laprox::verify
