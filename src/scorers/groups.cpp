#include "scorers/groups.h"

namespace laprox {

OptionSpec group_option(const std::string& fallback) {
  return OptionSpec::choice("gqa", fallback, {"mean", "max", "sum"},
                            "how the query heads that share a KV head become one score");
}

GroupReduction group_of(const Options& options) {
  const std::string& name = options.text("gqa");
  return name == "max" ? GroupReduction::maximum : name == "sum" ? GroupReduction::sum : GroupReduction::mean;
}

Matrix reduce_groups(const Matrix& query_heads, Index group, GroupReduction reduction) {
  Matrix reduced(query_heads.rows() / group, query_heads.cols());
  for (Index kv_head = 0; kv_head < reduced.rows(); ++kv_head) {
    // Row by row: columns lie far from one another.
    auto row = reduced.row(kv_head);
    row = query_heads.row(kv_head * group);
    for (Index head = kv_head * group + 1; head < (kv_head + 1) * group; ++head) {
      if (reduction == GroupReduction::maximum) {
        row = row.cwiseMax(query_heads.row(head));
      } else {
        row += query_heads.row(head);
      }
    }
    if (reduction == GroupReduction::mean) row /= static_cast<double>(group);
  }
  return reduced;
}

}  // namespace laprox
