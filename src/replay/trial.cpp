#include "laprox/trial.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "laprox/array_source.h"
#include "laprox/cost.h"

namespace laprox {

namespace {

constexpr Index kTrialContext = 4096;
constexpr Index kTrialDecoded = 256;  ///< queries behind the prompt

/// The first layer with the last `context` tokens of the prompt and the first queries behind it.
DumpInfo shortened(const DumpInfo& dump, Index context) {
  DumpInfo trial;
  const Index cut = dump.context_length - context;
  trial.path = "trial";
  trial.context_length = context;
  const DumpInfo::Rows decoded = dump.rows_between(dump.context_length, dump.tokens);
  const bool longer = decoded.count() > kTrialDecoded;
  const Index end = longer ? dump.query_positions[decoded.first + kTrialDecoded] : dump.tokens;
  trial.tokens = end - cut;
  for (const Index position : dump.query_positions) {
    if (position >= cut && position < end) trial.query_positions.push_back(position - cut);
  }
  trial.layers = {dump.layers.front()};
  trial.layers.front().has_output = false;
  trial.layers.front().kv_source = -1;
  return trial;
}

/// Budgets as shares of the prompt, which mean the same in a shorter one.
SweepOptions in_shares(const DumpInfo& dump, SweepOptions options) {
  for (BudgetRequest& budget : options.budgets) {
    const double share =
        static_cast<double>(resolve(budget, dump).tokens_per_head()) * 100 / static_cast<double>(dump.context_length);
    budget = {BudgetRequest::Unit::percent, share, fmt::format("{}%", share)};
  }
  return options;
}

/// Bit patterns of numbers in [0.5, 1), of either sign: the exponent is fixed, the bits of `random` are not.
template <class Bits>
void fill(std::byte* data, std::size_t count, Bits exponent, Bits random) {
  std::uint64_t state = 1;
  for (std::size_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;  // Knuth's MMIX generator
    const Bits value = static_cast<Bits>((static_cast<Bits>(state >> (64 - 8 * sizeof(Bits))) & random) | exponent);
    std::memcpy(data + i * sizeof(Bits), &value, sizeof(Bits));
  }
}

/// Arrays of random numbers. All of one type are the same numbers, so that a second one costs nothing.
class RandomArrays {
 public:
  ArrayView array(ElementType type, std::vector<Index> shape) {
    std::size_t count = 1;
    for (const Index extent : shape) count *= static_cast<std::size_t>(extent);
    auto& numbers = numbers_[type];
    const std::size_t bytes = count * static_cast<std::size_t>(size_of(type));
    if (!numbers || numbers->size() < bytes) numbers = std::make_shared<std::vector<std::byte>>(make(type, count));
    return {type, std::move(shape), numbers->data(), numbers};
  }

 private:
  static std::vector<std::byte> make(ElementType type, std::size_t count) {
    std::vector<std::byte> bytes(count * static_cast<std::size_t>(size_of(type)));
    if (type == ElementType::float16) fill<std::uint16_t>(bytes.data(), count, 14U << 10, 0x83ff);
    if (type == ElementType::bfloat16) fill<std::uint16_t>(bytes.data(), count, 126U << 7, 0x807f);
    if (type == ElementType::float32) fill<std::uint32_t>(bytes.data(), count, 126U << 23, 0x807fffff);
    if (type == ElementType::float64) fill<std::uint64_t>(bytes.data(), count, 1022ULL << 52, 0x800fffffffffffffULL);
    return bytes;
  }

  std::map<ElementType, std::shared_ptr<std::vector<std::byte>>> numbers_;
};

ArraySource random_source(const DumpInfo& info) {
  const auto random = std::make_shared<RandomArrays>();
  return {info, [info, random](Index, LayerArray array, DumpInfo::Rows rows) {
            const LayerSummary& layer = info.layers.front();
            const LayerGeometry& g = layer.geometry;
            switch (array) {
              case LayerArray::q:
                return random->array(layer.q_type, {g.query_heads, rows.count(), g.head_size});
              case LayerArray::k:
                return random->array(layer.k_type, {g.kv_heads, info.tokens, g.head_size});
              case LayerArray::v:
                return random->array(layer.v_type, {g.kv_heads, info.tokens, g.value_size});
              case LayerArray::w_o:
                return random->array(layer.w_o_type, {g.query_heads * g.value_size, g.model_size});
              default:
                return random->array(ElementType::float32, {array == LayerArray::b_o ? g.model_size : rows.count()});
            }
          }};
}

/// What a trial sweep took, and its floating-point operations.
struct Trial {
  double seconds, flops;

  Trial(const DumpInfo& dump, Index context, const SweepOptions& options, const Backend& backend) {
    const DumpInfo info = shortened(dump, context);
    const ArraySource source = random_source(info);
    sweep_dump(source, options, backend);  // makes the numbers, and takes the memory
    const auto begin = std::chrono::steady_clock::now();
    sweep_dump(source, options, backend);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    flops = estimate_cost(info, options, backend).total_flops();
  }
};

}  // namespace

double estimate_seconds(const DumpInfo& dump, const SweepOptions& options, const Backend& backend) {
  const SweepOptions shares = in_shares(dump, options);
  const double flops = estimate_cost(dump, shares, backend).total_flops();
  const Trial trial(dump, std::min(dump.context_length, kTrialContext), shares, backend);
  if (dump.context_length <= kTrialContext) return trial.seconds * flops / trial.flops;
  // What a layer takes however long the prompt is shows in a shorter one.
  const Trial half(dump, kTrialContext / 2, shares, backend);
  const double per_flop = std::max(0.0, (trial.seconds - half.seconds) / (trial.flops - half.flops));
  const double per_layer = std::max(0.0, trial.seconds - per_flop * trial.flops);
  return per_layer * static_cast<double>(dump.layers.size()) + per_flop * flops;
}

}  // namespace laprox
