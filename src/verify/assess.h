#pragma once

#include <span>

#include "laprox/verify.h"
#include "verify/precision.h"

namespace laprox::verify {

/// Beyond this a plain evaluation is no yardstick: of a row's largest element, of its norm, in radians; of what is
/// kept.
inline constexpr double kCap = 0.2;

/// One layer's values of one kind. A row is what is assessed on its own: a head's tokens, or a query's output.
struct Values {
  const Matrix& found;
  const Matrix& expected;            ///< the float64 reference
  std::vector<const Matrix*> plain;  ///< plain evaluations in the precision; none where they leave its range
  Index first = 0, last = -1;  ///< the columns [first, last) are assessed (-1: all); NaN and infinity count everywhere
  Index rows_per_head = 1;     ///< consecutive rows that share the yardsticks of plain evaluations; 0: all rows do
  std::span<const Index> positions = {};  ///< of the rows, where they are queries' outputs
  double weight_error = 0;                ///< see weight_error.h; 0 for what no attention weight enters

  /// The assessed columns of one row.
  Eigen::RowVectorXd assessed(const Matrix& of, Index row) const {
    return of.row(row).segment(first, (last < 0 ? of.cols() : last) - first);
  }
  Index place_of(Index row) const { return positions.empty() ? row / rows_per_head : positions[row]; }
};

/// Assesses one layer's values and adds what it finds to `check`, which keeps the worst of each part.
///
/// Scale: the layer's largest |expected|. An element's error may be twice the largest error that a plain evaluation has
/// on the head's elements of up to four times its size, plus one ulp, plus 1e-5 of the scale; of an output, whose
/// columns all have the errors of the same weights, also the largest on its own row. A row's relative L2 error
/// may be twice the largest that a plain evaluation has on a row of the head, plus one rounding, plus what 1e-5 of the
/// scale in every element makes; the same holds for the row's angle to the reference, whose cosine is reported. None
/// may exceed a fifth (of the row's largest element, of its norm, in radians) beyond the 1e-5: where a plain evaluation
/// is off by more, it is no yardstick. What attention weights enter may also be off by their relative error.
void assess_values(const Values& values, const Precision& precision, Index layer, ValueCheck& check);

/// A check that has assessed nothing yet.
ValueCheck make_value_check(std::string name, std::string policy, std::string rows, std::string columns,
                            const Precision& precision);

/// Kept sets are assessed where every layer has a cache of its own. Throws UsageError elsewhere.
void check_own_caches(const DumpInfo& dump);

/// How far what was measured is beyond what is allowed: above 1 it fails. 0 over 0 passes.
double excess(double measured, double allowed);

/// Replaces `worst` by `found` where that is worse.
void keep_worst(VerdictPart& worst, const VerdictPart& found);

}  // namespace laprox::verify
