#include "laprox/dump_info.h"

#include <fmt/format.h>

#include <algorithm>

#include "laprox/error.h"

namespace laprox {

namespace {

[[noreturn]] void missing_queries(const DumpInfo& dump, const std::string& who, Index begin, Index stored) {
  throw UsageError(
      fmt::format("{}: {} needs the prompt queries at positions {} to {}, but the dump stores only {} of these {}; "
                  "make a dump with more queries, or leave this policy out",
                  dump.path.string(), who, begin, dump.context_length - 1, stored, dump.context_length - begin));
}

}  // namespace

std::optional<ElementType> LayerSummary::common_type() const {
  if (q_type == k_type && k_type == v_type && v_type == w_o_type) return q_type;
  return std::nullopt;
}

Index DumpInfo::total_kv_heads() const {
  Index heads = 0;
  for (const LayerSummary& layer : layers) heads += layer.kv_source < 0 ? layer.geometry.kv_heads : 0;
  return heads;
}

bool DumpInfo::shares_caches() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerSummary& layer) { return layer.kv_source >= 0; });
}

DumpInfo::Rows DumpInfo::rows_between(Index begin, Index end) const {
  const auto row_of = [&](Index position) {
    return std::lower_bound(query_positions.begin(), query_positions.end(), position) - query_positions.begin();
  };
  return {row_of(begin), row_of(end)};
}

DumpInfo::Rows DumpInfo::window_rows(Index window, const std::string& who) const {
  const Index begin = std::max<Index>(0, context_length - window);
  const Rows rows = rows_between(begin, context_length);
  if (rows.count() != context_length - begin) missing_queries(*this, who, begin, rows.count());
  return rows;
}

DumpInfo::Rows DumpInfo::prompt_rows(const std::string& who) const { return window_rows(context_length, who); }

}  // namespace laprox
