#include "backends/cpu/walk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace laprox::cpu {

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr Index kTokenBlock = 128;
/// Blocks that are summed in one chain before they join the total: short chains round less.
constexpr std::size_t kChainBlocks = 8;

/// maximum[r] = max over tokens of logit[token][r].
void find_maxima(const LogitTable& table, std::span<const std::int32_t> tokens, float* maximum) {
  const Index stride = table.rows.stride();
  for (Index r = 0; r < stride; r += kPanel) {
    Lanes low = load(maximum + r), high = load(maximum + r + kLanes);
    for (std::int32_t token : tokens) {
      const float* logits = table.logits + token * stride + r;
      low = max(low, load(logits));
      high = max(high, load(logits + kLanes));
    }
    store(maximum + r, low);
    store(maximum + r + kLanes, high);
  }
}

/// One row's running softmax sums while segments are merged into it.
struct RowSums {
  double maximum = kNothing, sum = 0;

  /// Factors by which the old and the new values are scaled when `other` joins.
  std::pair<float, float> join(double other_maximum, double other_sum) {
    const double largest = std::max(maximum, other_maximum);
    if (largest == kNothing) return {0.0F, 0.0F};
    const double mine = std::exp(maximum - largest), theirs = std::exp(other_maximum - largest);
    sum = sum * mine + other_sum * theirs;
    maximum = largest;
    return {static_cast<float>(mine), static_cast<float>(theirs)};
  }
};

/// The share of `part` in the sum of both denominators.
double share(const RowSums& part, const RowSums& rest) {
  if (part.sum == 0) return 0;
  if (rest.sum == 0) return 1;
  const double largest = std::max(part.maximum, rest.maximum);
  const double mine = part.sum * std::exp(part.maximum - largest);
  return mine / (mine + rest.sum * std::exp(rest.maximum - largest));
}

void add_scaled(float* target, float old_factor, const float* source, float new_factor, Index count) {
  for (Index c = 0; c < count; c += kLanes) {
    store(target + c, old_factor * load(target + c) + new_factor * load(source + c));
  }
}

/// The tokens between two neighbouring counts of a walk; segment 0 holds what every cell keeps.
struct Segments {
  std::vector<Index> ends;           ///< distinct counts, ascending
  std::vector<PartialSoftmax> sums;  ///< ends.size() + 1 of them; the last one is kept by no cell
};

Segments sum_segments(const LogitTable& table, Index context, Index tokens, const Ranking& ranking,
                      std::span<const Index> counts) {
  Segments segments;
  segments.ends.assign(counts.begin(), counts.end());
  std::sort(segments.ends.begin(), segments.ends.end());
  segments.ends.erase(std::unique(segments.ends.begin(), segments.ends.end()), segments.ends.end());
  std::vector<std::int32_t> always(static_cast<std::size_t>(tokens - context));
  std::iota(always.begin(), always.end(), static_cast<std::int32_t>(context));
  always.insert(always.end(), ranking.begin(), ranking.begin() + segments.ends.front());
  segments.sums.push_back(sum_over(table, always));
  for (std::size_t s = 0; s < segments.ends.size(); ++s) {
    const Index end = s + 1 < segments.ends.size() ? segments.ends[s + 1] : context;
    segments.sums.push_back(sum_over(table, std::span(ranking.begin() + segments.ends[s], ranking.begin() + end)));
  }
  return segments;
}

/// Forms the deltas of one query row at every distinct count from the sums of its segments.
class RowDeltas {
 public:
  RowDeltas(std::size_t cuts, Index value_stride)
      : value_stride_(value_stride),
        evicted_(cuts),
        shares_(cuts),
        evicted_values_(static_cast<Index>(cuts) * value_stride),
        kept_values_(value_stride),
        outputs_(static_cast<Index>(cuts) * value_stride) {}

  /// After the call, cut c's delta stands in delta(c) and its evicted share in evicted_share(c).
  void form(const std::vector<PartialSoftmax>& segments, Index row, const double* sink, SoftmaxMode mode) {
    sum_evicted(segments, row);
    RowSums kept;
    if (sink) kept = {*sink, 1.0};
    std::fill_n(kept_values_.data(), value_stride_, 0.0F);
    for (std::size_t cut = 0; cut < evicted_.size(); ++cut) {
      const PartialSoftmax& segment = segments[cut];
      const auto [mine, theirs] = kept.join(segment.maximum[row], segment.sum[row]);
      add_scaled(kept_values_.data(), mine, &segment.values[row * value_stride_], theirs, value_stride_);
      shares_[cut] = share(evicted_[cut], kept);
      write_kept(cut, kept, mode);
      write_delta(cut, kept, mode);
    }
  }

  /// Cut c's head output over what it keeps.
  const float* kept(std::size_t cut) const { return &outputs_[static_cast<Index>(cut) * value_stride_]; }
  const float* delta(std::size_t cut) const { return &evicted_values_[static_cast<Index>(cut) * value_stride_]; }
  double evicted_share(std::size_t cut) const { return shares_[cut]; }

 private:
  /// Sums over segments cut + 1 .. last, for every cut, from the back.
  void sum_evicted(const std::vector<PartialSoftmax>& segments, Index row) {
    RowSums sums;
    std::fill_n(kept_values_.data(), value_stride_, 0.0F);
    for (std::size_t cut = evicted_.size(); cut-- > 0;) {
      const PartialSoftmax& segment = segments[cut + 1];
      const auto [mine, theirs] = sums.join(segment.maximum[row], segment.sum[row]);
      add_scaled(kept_values_.data(), mine, &segment.values[row * value_stride_], theirs, value_stride_);
      evicted_[cut] = sums;
      std::copy_n(kept_values_.data(), value_stride_, &evicted_values_[static_cast<Index>(cut) * value_stride_]);
    }
  }

  /// o_kept; truncated: (1 - w) o_kept, where 1 - w is the kept share itself.
  void write_kept(std::size_t cut, const RowSums& kept, SoftmaxMode mode) {
    float* output = &outputs_[static_cast<Index>(cut) * value_stride_];
    const double weight = mode == SoftmaxMode::renormalized ? 1 : share(kept, evicted_[cut]);
    const float factor = kept.sum > 0 ? static_cast<float>(weight / kept.sum) : 0.0F;
    for (Index c = 0; c < value_stride_; ++c) output[c] = factor * kept_values_[c];
  }

  /// w (o_kept - o_evicted) in place of the evicted values; truncated: -w o_evicted.
  void write_delta(std::size_t cut, const RowSums& kept, SoftmaxMode mode) {
    float* values = &evicted_values_[static_cast<Index>(cut) * value_stride_];
    const double weight = shares_[cut];
    const bool rescaled = mode == SoftmaxMode::renormalized && kept.sum > 0;
    const float of_kept = rescaled ? static_cast<float>(weight / kept.sum) : 0.0F;
    const float of_evicted = weight > 0 ? static_cast<float>(-weight / evicted_[cut].sum) : 0.0F;
    add_scaled(values, of_evicted, kept_values_.data(), of_kept, value_stride_);
  }

  Index value_stride_;
  std::vector<RowSums> evicted_;
  std::vector<double> shares_;
  Buffer<float> evicted_values_, kept_values_, outputs_;
};

/// Forms every row's deltas at `cuts` cuts from the sums of its segments, and writes those of the cells' cuts.
void write_deltas(const LogitTable& table, const std::vector<PartialSoftmax>& sums, std::size_t cuts,
                  const std::vector<std::size_t>& cut_of_cell, std::span<const double> sinks, SoftmaxMode mode,
                  DeltaTarget target, double* evicted_mass) {
  RowDeltas deltas(cuts, padded(table.value_size));
  for (Index head = 0; head < table.rows.heads(); ++head) {
    const double* sink = sinks.empty() ? nullptr : &sinks[head];
    for (Index query = 0; query < table.rows.queries(); ++query) {
      deltas.form(sums, head * table.rows.head_stride() + query, sink, mode);
      for (std::size_t cell = 0; cell < cut_of_cell.size(); ++cell) {
        const Index offset =
            static_cast<Index>(cell) * target.cell_stride + query * target.query_stride + head * table.value_size;
        std::copy_n(deltas.delta(cut_of_cell[cell]), table.value_size, target.first + offset);
        std::copy_n(deltas.kept(cut_of_cell[cell]), table.value_size, target.kept + offset);
        evicted_mass[cell] += deltas.evicted_share(cut_of_cell[cell]);
      }
    }
  }
}

/// Tokens that some of a table's queries find in the cache and later ones do not: two tables of them, one that shows
/// each query what is still there, and one that shows it what has left.
class LeavingTokens {
 public:
  LeavingTokens(const LogitTable& table, std::span<const Index> positions, const Lifetimes& lifetimes,
                std::span<const std::int32_t> leaving)
      : table_(table),
        tokens_(leaving.size()),
        kept_(static_cast<Index>(leaving.size()) * table.rows.stride()),
        evicted_(kept_.size()),
        values_(static_cast<Index>(leaving.size()) * table.value_size) {
    std::iota(tokens_.begin(), tokens_.end(), 0);
    std::fill_n(kept_.data(), kept_.size(), kNothing);
    std::fill_n(evicted_.data(), evicted_.size(), kNothing);
    for (std::size_t n = 0; n < leaving.size(); ++n) {
      const Index token = leaving[n], row = static_cast<Index>(n);
      std::copy_n(table.values + token * table.value_size, table.value_size, values_.data() + row * table.value_size);
      for (Index head = 0; head < table.rows.heads(); ++head) {
        for (Index query = 0; query < table.rows.queries(); ++query) {
          const bool there = positions[query] < lifetimes[token];
          const Index r = head * table.rows.head_stride() + query;
          (there ? kept_ : evicted_)[row * table.rows.stride() + r] = table.logits[token * table.rows.stride() + r];
        }
      }
    }
  }

  std::span<const std::int32_t> tokens() const { return tokens_; }
  LogitTable while_kept() const { return {table_.rows, kept_.data(), values_.data(), table_.value_size}; }
  LogitTable once_evicted() const { return {table_.rows, evicted_.data(), values_.data(), table_.value_size}; }

 private:
  const LogitTable& table_;
  std::vector<std::int32_t> tokens_;  ///< 0, 1, ...: their rows in the two tables
  Buffer<float> kept_, evicted_, values_;
};

}  // namespace

PartialSoftmax::PartialSoftmax(Index stride, Index value_stride)
    : maximum(stride), sum(stride), values(stride * value_stride) {
  std::fill_n(maximum.data(), maximum.size(), kNothing);
  std::fill_n(sum.data(), sum.size(), 0.0F);
  std::fill_n(values.data(), values.size(), 0.0F);
}

PartialSoftmax sum_over(const LogitTable& table, std::span<const std::int32_t> tokens) {
  const Index stride = table.rows.stride(), value_stride = padded(table.value_size);
  const Index real_rows = table.rows.heads() * table.rows.head_stride();
  PartialSoftmax total(stride, value_stride);
  find_maxima(table, tokens, total.maximum.data());

  PartialSoftmax chain(stride, value_stride);
  Buffer<float> weights(kTokenBlock * stride);
  Panels values(kTokenBlock, table.value_size);
  for (std::size_t first = 0; first < tokens.size(); first += kTokenBlock) {
    const auto block = tokens.subspan(first, std::min<std::size_t>(kTokenBlock, tokens.size() - first));
    const bool starts_chain = first / kTokenBlock % kChainBlocks == 0;
    if (starts_chain) std::fill_n(chain.sum.data(), stride, 0.0F);
    for (std::size_t i = 0; i < block.size(); ++i) {
      const float* logits = table.logits + block[i] * stride;
      float* row = weights.data() + static_cast<Index>(i) * stride;
      for (Index r = 0; r < stride; r += kLanes) {
        const Lanes maximum = load(&total.maximum[r]);
        const Lanes e = exp_nonpositive(load(logits + r) - select(maximum == kNothing, Lanes{}, maximum));
        store(row + r, e);
        store(&chain.sum[r], load(&chain.sum[r]) + e);
      }
      values.set_row(static_cast<Index>(i), table.values + block[i] * table.value_size);
    }
    multiply(real_rows, static_cast<Index>(block.size()), {weights.data(), 1, stride}, values, 0, values.count(),
             chain.values.data(), value_stride, !starts_chain);
    const bool ends_chain = first + kTokenBlock >= tokens.size() || (first / kTokenBlock + 1) % kChainBlocks == 0;
    if (!ends_chain) continue;
    add_scaled(total.sum.data(), 1.0F, chain.sum.data(), 1.0F, stride);
    add_scaled(total.values.data(), 1.0F, chain.values.data(), 1.0F, real_rows * value_stride);
  }
  return total;
}

void walk(const LogitTable& table, Index context, Index tokens, const Ranking& ranking, std::span<const Index> counts,
          std::span<const double> sinks, SoftmaxMode mode, DeltaTarget target, double* evicted_mass) {
  const Segments segments = sum_segments(table, context, tokens, ranking, counts);
  std::vector<std::size_t> cut_of_cell;
  for (Index count : counts) {
    cut_of_cell.push_back(static_cast<std::size_t>(std::lower_bound(segments.ends.begin(), segments.ends.end(), count) -
                                                   segments.ends.begin()));
  }
  write_deltas(table, segments.sums, segments.ends.size(), cut_of_cell, sinks, mode, target, evicted_mass);
}

void walk_decoding(const LogitTable& table, std::span<const Index> positions, const Lifetimes& lifetimes,
                   std::span<const double> sinks, SoftmaxMode mode, DeltaTarget target, double* evicted_mass) {
  std::vector<std::int32_t> kept, evicted, leaving;
  for (Index token = 0; token <= positions.back(); ++token) {
    const std::int32_t end = lifetimes[token];
    auto& tokens = end > positions.back() ? kept : end <= positions.front() ? evicted : leaving;
    tokens.push_back(static_cast<std::int32_t>(token));
  }
  std::vector<PartialSoftmax> sums;
  sums.push_back(sum_over(table, kept));
  const LeavingTokens split(table, positions, lifetimes, leaving);
  sums.push_back(sum_over(split.while_kept(), split.tokens()));
  sums.push_back(sum_over(split.once_evicted(), split.tokens()));
  sums.push_back(sum_over(table, evicted));
  write_deltas(table, sums, 3, {1}, sinks, mode, target, evicted_mass);
}

}  // namespace laprox::cpu
