#include "laprox/budget.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <utility>

#include "base/text.h"
#include "laprox/error.h"

namespace laprox {

namespace {

constexpr std::array<std::pair<std::string_view, double>, 3> kByteUnits{
    {{"KiB", 1024.0}, {"MiB", 1024.0 * 1024.0}, {"GiB", 1024.0 * 1024.0 * 1024.0}}};

[[noreturn]] void not_a_budget(std::string_view text) {
  throw UsageError(
      fmt::format("budget '{}': expected tokens per KV head (128), a percentage of the context (5%, above 0 and up to "
                  "100), or bytes for the whole model (64MiB)",
                  text));
}

/// Bytes that one token per KV head takes in the whole model, as stored in the dump.
double bytes_per_token(const DumpInfo& dump) {
  double bytes = 0;
  for (const LayerSummary& layer : dump.layers) {
    if (layer.kv_source >= 0) continue;  // its cache is counted where it is owned
    bytes += static_cast<double>(layer.geometry.kv_heads * (layer.geometry.head_size * size_of(layer.k_type) +
                                                            layer.geometry.value_size * size_of(layer.v_type)));
  }
  return bytes;
}

}  // namespace

double percent_of(double percent, Index tokens) {
  return std::floor(static_cast<double>(tokens) * percent / 100.0 + 0.5);
}

BudgetRequest parse_budget(std::string_view text) {
  BudgetRequest request;
  request.text = trim(text);
  std::string_view number = request.text;
  double factor = 1;
  if (number.ends_with('%')) {
    request.unit = BudgetRequest::Unit::percent;
    number.remove_suffix(1);
  }
  for (const auto& [suffix, bytes] : kByteUnits) {
    if (number.ends_with(suffix)) {
      request.unit = BudgetRequest::Unit::bytes;
      factor = bytes;
      number.remove_suffix(suffix.size());
    }
  }
  const auto amount = parse_real(number);
  if (!amount || *amount <= 0) not_a_budget(text);
  request.amount = *amount * factor;
  if (request.unit == BudgetRequest::Unit::percent && request.amount > 100) not_a_budget(text);
  if (request.unit == BudgetRequest::Unit::tokens && request.amount != std::floor(request.amount)) not_a_budget(text);
  return request;
}

Budget resolve(const BudgetRequest& request, const DumpInfo& dump) {
  const double context = static_cast<double>(dump.context_length);
  double tokens = request.amount, asked = tokens;
  if (request.unit == BudgetRequest::Unit::percent) {
    tokens = percent_of(request.amount, dump.context_length);
    asked = context * request.amount / 100;
  }
  if (request.unit == BudgetRequest::Unit::bytes) {
    asked = std::min(context, request.amount / bytes_per_token(dump));
    tokens = std::floor(asked);
  }
  if (tokens < 1) {
    throw UsageError(fmt::format("budget {} on {}: less than one token per KV head of the {} in the context",
                                 request.text, dump.path.string(), dump.context_length));
  }
  if (tokens > context) {
    throw UsageError(fmt::format("budget {} on {}: {} tokens per KV head, but the context has only {}", request.text,
                                 dump.path.string(), tokens, dump.context_length));
  }
  return Budget(static_cast<Index>(tokens), dump.total_kv_heads(), asked);
}

Index total(const HeadCounts& counts, const DumpInfo& dump) {
  HeadCounts own;
  for (std::size_t layer = 0; layer < counts.size(); ++layer) {
    if (dump.layers[layer].kv_source < 0) own.push_back(counts[layer]);
  }
  return total(own);
}

Index total(const HeadCounts& counts) {
  Index sum = 0;
  for (const auto& layer : counts) {
    for (Index count : layer) sum += count;
  }
  return sum;
}

}  // namespace laprox
