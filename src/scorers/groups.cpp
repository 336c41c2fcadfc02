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
    const auto rows = query_heads.middleRows(kv_head * group, group);
    switch (reduction) {
      case GroupReduction::mean:
        reduced.row(kv_head) = rows.colwise().mean();
        break;
      case GroupReduction::maximum:
        reduced.row(kv_head) = rows.colwise().maxCoeff();
        break;
      case GroupReduction::sum:
        reduced.row(kv_head) = rows.colwise().sum();
        break;
    }
  }
  return reduced;
}

}  // namespace laprox
