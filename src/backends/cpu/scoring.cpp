#include "backends/cpu/scoring.h"

namespace laprox::cpu {

const WindowStatistics& Scoring::window_statistics(Index window) {
  const auto [entry, is_new] = statistics_.try_emplace(window);
  if (is_new) entry->second = cpu::window_statistics(layer_, window, threads_);
  return entry->second;
}

const Matrix& Scoring::window_products(Index window) {
  const auto [entry, is_new] = window_products_.try_emplace(window);
  if (is_new) entry->second = cpu::window_products(layer_, window, threads_);
  return entry->second;
}

const Matrix& Scoring::column_sums() {
  if (column_sums_.size() == 0) column_sums_ = cpu::column_sums(layer_, threads_);
  return column_sums_;
}

const Matrix& Scoring::value_norms() {
  if (value_norms_.size() == 0) value_norms_ = cpu::value_norms(layer_, threads_);
  return value_norms_;
}

const Matrix& Scoring::value_l1_norms() {
  if (value_l1_norms_.size() == 0) value_l1_norms_ = cpu::value_l1_norms(layer_, threads_);
  return value_l1_norms_;
}

void Scoring::visit_heads(Index window, const HeadVisitor& visit) { cpu::visit_heads(layer_, window, visit, threads_); }

const Matrix& Scoring::value_products() {
  if (value_products_.size() == 0) value_products_ = cpu::value_products(layer_, threads_);
  return value_products_;
}

}  // namespace laprox::cpu
