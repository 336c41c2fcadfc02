#pragma once

#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "laprox/candidate.h"
#include "laprox/dump_reader.h"
#include "laprox/sweep.h"

namespace laprox {

/// One part of a verdict; each part can fail it. Of all layers and rows the worst is kept: the one that exceeds what is
/// allowed by most, or comes nearest to it.
struct VerdictPart {
  std::string name = {};  ///< "finite", "element", "relative L2", "cosine"; of kept sets "tokens", "counts", "budget"
  double measured = 0;    ///< cosine: the cosine itself
  double allowed = 0;     ///< the most that passes; cosine: the least
  bool passed = true;
  Index layer = -1;     ///< where; -1: nowhere, because nothing was assessed
  Index row = -1;       ///< query head, KV head or stored query
  Index column = -1;    ///< token, or column of the output; -1: the part assesses whole rows
  bool capped = false;  ///< `allowed` is the cap, because a plain evaluation in the precision is worse than that
  /// Measured over allowed, as errors; of tokens the distance from the cut over the tolerance. Above 1 it fails.
  double excess = -1;
};

/// The element whose error is the largest share of what is allowed.
struct WorstElement {
  double found = 0, expected = 0;
  double ulps = 0;  ///< of the precision, at the expected value
};

/// How much fails, and how: the elements that are non-finite where the reference is not, or beyond what is allowed.
struct Failing {
  Index elements = 0;
  std::map<Index, std::set<Index>> rows;      ///< by layer: query heads, KV heads or stored queries
  Index first_column = -1, last_column = -1;  ///< the span of tokens, or of the output's columns
  /// Found over expected, where neither is 0 and both are finite; none: least_ratio is above most_ratio.
  double least_ratio = std::numeric_limits<double>::infinity();
  double most_ratio = -std::numeric_limits<double>::infinity();

  void add(Index layer, Index row, Index column, double found, double expected);
};

/// Numbers of one kind, over all layers that have them.
struct ValueCheck {
  std::string name;           ///< "column_norms", "scores"
  std::string policy;         ///< empty for what belongs to no policy
  std::string rows, columns;  ///< what a row and a column are: "head", "token"
  ElementType precision{};    ///< in which the numbers are assessed
  Index elements = 0;
  std::vector<VerdictPart> parts;
  WorstElement worst;
  Failing failing;

  bool passed() const;
  /// The part of that name. Throws Bug where there is none.
  const VerdictPart& part(std::string_view part_name) const;
};

/// Kept sets of one policy at one budget, over all layers that have them.
struct KeptCheck {
  std::string policy, budget;
  ElementType precision{};
  Index differences = 0;  ///< tokens kept by only one of the two
  Index ties = 0;         ///< of these, the ones whose score is so near the cut that the precision cannot tell
  std::vector<VerdictPart> parts;

  bool passed() const;
  /// The part of that name. Throws Bug where there is none.
  const VerdictPart& part(std::string_view part_name) const;
};

/// What could not be checked, and why.
struct SkippedCheck {
  std::string name, reason;
};

struct Verification {
  std::string subject;  ///< the backend, or the candidate's file
  std::string policy;   ///< of a candidate, with every option spelled out; empty where none is needed
  std::vector<ValueCheck> values;
  std::vector<KeptCheck> kept;
  std::vector<SkippedCheck> skipped;

  bool passed() const;
};

struct VerifyOptions {
  /// In which arithmetic to assess. Unless given: the type in which a backend reads the dump; of a candidate its root
  /// attribute `precision`, else each dataset's element type (of `kept`: the coarsest of the datasets beside it, else
  /// float32).
  std::optional<ElementType> precision;
  std::vector<BudgetRequest> budgets;  ///< at which a backend's kept sets are compared
  /// A backend is checked with these (empty: with every registered one); a candidate's results are those of the one
  /// here.
  std::vector<Policy> policies;
  int threads = 0;  ///< of the plain programs that say how large an error may be; 0: all. Verdicts do not depend on it
};

/// Checks a backend on one dump: every scoring primitive, the exact output, and every registered policy's scores and
/// kept sets against the float64 reference. What the dump cannot serve is listed as skipped. Cost: the reference's on
/// one thread, and that of three plain programs. Throws DumpError, BackendError, UsageError.
Verification verify_backend(const LayerSource& dump, const Backend& backend, const VerifyOptions& options,
                            const Progress& progress = {});

/// Checks the results of a foreign kernel: any layers, and of each any of a Candidate's arrays. The one policy of the
/// options says what scores, column statistics and kept sets are those of; unless given, the candidate does. Throws
/// UsageError where the policy is missing or contradicts the candidate, or the dump cannot serve it.
Verification verify_candidate(const LayerSource& dump, const Candidate& candidate, const VerifyOptions& options,
                              const Progress& progress = {});
/// The same for a file of the layout that write_scores writes (data/README.md documents it). Throws DumpError where the
/// file breaks the layout or belongs to another dump.
Verification verify_candidate(const DumpReader& dump, const std::filesystem::path& candidate,
                              const VerifyOptions& options, const Progress& progress = {});

}  // namespace laprox
