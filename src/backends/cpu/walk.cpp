#include "backends/cpu/walk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace laprox::cpu {

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

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
void write_deltas(const QueryRows& rows, Index value_size, const std::vector<PartialSoftmax>& sums, std::size_t cuts,
                  const std::vector<std::size_t>& cut_of_cell, const Target& target) {
  RowDeltas deltas(cuts, padded(value_size));
  for (Index head = 0; head < rows.heads(); ++head) {
    const double* sink = target.sinks.empty() ? nullptr : &target.sinks[head];
    for (Index query = 0; query < rows.queries(); ++query) {
      deltas.form(sums, head * rows.head_stride() + query, sink, target.mode);
      for (std::size_t cell = 0; cell < cut_of_cell.size(); ++cell) {
        const Index offset =
            static_cast<Index>(cell) * target.cell_stride + query * target.query_stride + head * value_size;
        std::copy_n(deltas.delta(cut_of_cell[cell]), value_size, target.first + offset);
        std::copy_n(deltas.kept(cut_of_cell[cell]), value_size, target.kept + offset);
        target.evicted_mass[cell] += deltas.evicted_share(cut_of_cell[cell]);
      }
    }
  }
}

/// Tokens of a block that some of its queries find in the cache and later ones do not: two blocks of them, one that
/// shows each query what is still there, and one that shows it what has left.
class LeavingTokens {
 public:
  LeavingTokens(const WeightBlock& block, std::span<const Index> positions, const Lifetimes& lifetimes,
                std::span<const std::int32_t> leaving)
      : block_(block), tokens_(leaving.size()), values_(static_cast<Index>(leaving.size()) * block.value_size) {
    std::iota(tokens_.begin(), tokens_.end(), 0);
    for (std::size_t n = 0; n < leaving.size(); ++n) {
      std::copy_n(block.values + leaving[n] * block.value_size, block.value_size,
                  values_.data() + static_cast<Index>(n) * block.value_size);
    }
    kept_.show(block, leaving, [&](Index query, Index token) { return positions[query] < lifetimes[token]; });
    evicted_.show(block, leaving, [&](Index query, Index token) { return positions[query] >= lifetimes[token]; });
  }

  std::span<const std::int32_t> tokens() const { return tokens_; }
  WeightBlock while_kept() const { return block_of(kept_); }
  WeightBlock once_evicted() const { return block_of(evicted_); }

 private:
  struct Shown {
    Buffer<float> logits, weights;  ///< [leaving, stride]

    template <class Sees>
    void show(const WeightBlock& block, std::span<const std::int32_t> leaving, const Sees& sees) {
      const Index stride = block.rows.stride(), size = static_cast<Index>(leaving.size()) * stride;
      logits = Buffer<float>(size), weights = Buffer<float>(size);
      std::fill_n(logits.data(), size, kNothing);
      std::fill_n(weights.data(), size, 0.0F);
      for (std::size_t n = 0; n < leaving.size(); ++n) {
        for (Index head = 0; head < block.rows.heads(); ++head) {
          for (Index query = 0; query < block.rows.queries(); ++query) {
            if (!sees(query, block.first + leaving[n])) continue;
            const Index r = head * block.rows.head_stride() + query, at = static_cast<Index>(n) * stride + r;
            logits[at] = block.logits[leaving[n] * stride + r];
            weights[at] = block.weights[leaving[n] * stride + r];
          }
        }
      }
    }
  };

  WeightBlock block_of(const Shown& shown) const {
    const auto count = static_cast<Index>(tokens_.size());
    return {block_.rows,      0, count, shown.logits.data(), shown.weights.data(), block_.maximum, values_.data(),
            block_.value_size};
  }

  const WeightBlock& block_;
  std::vector<std::int32_t> tokens_;  ///< 0, 1, ...: their rows in the two blocks
  Shown kept_, evicted_;
  Buffer<float> values_;
};

/// The distinct counts, ascending.
std::vector<Index> distinct(std::span<const Index> counts) {
  std::vector<Index> ends(counts.begin(), counts.end());
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return ends;
}

}  // namespace

RankedWalk::RankedWalk(const QueryRows& rows, Index value_size, Index context, Index tokens, const Ranking& ranking,
                       std::span<const Index> counts)
    : rows_(rows), value_size_(value_size), segment_of_(static_cast<std::size_t>(tokens), 0) {
  const std::vector<Index> ends = distinct(counts);
  for (std::size_t s = 0; s < ends.size(); ++s) {
    const Index end = s + 1 < ends.size() ? ends[s + 1] : context;
    for (Index n = ends[s]; n < end; ++n) {
      segment_of_[static_cast<std::size_t>(ranking[static_cast<std::size_t>(n)])] = static_cast<std::int32_t>(s + 1);
    }
  }
  for (const Index count : counts) {
    cut_of_cell_.push_back(static_cast<std::size_t>(std::lower_bound(ends.begin(), ends.end(), count) - ends.begin()));
  }
  cuts_ = ends.size();
  members_.resize(cuts_ + 1);
  sums_.emplace(cuts_ + 1, rows, value_size);
}

void RankedWalk::add(const WeightBlock& block) {
  for (auto& tokens : members_) tokens.clear();
  for (Index token = block.first; token < block.last; ++token) {
    members_[static_cast<std::size_t>(segment_of_[static_cast<std::size_t>(token)])].push_back(
        static_cast<std::int32_t>(token - block.first));
  }
  for (std::size_t segment = 0; segment < members_.size(); ++segment) sums_->add(segment, block, members_[segment]);
}

void RankedWalk::write(const Target& target) const {
  write_deltas(rows_, value_size_, sums_->sums(), cuts_, cut_of_cell_, target);
}

DecodingWalk::DecodingWalk(const QueryRows& rows, Index value_size, std::span<const Index> positions,
                           const Lifetimes& lifetimes)
    : rows_(rows), value_size_(value_size), positions_(positions), lifetimes_(lifetimes), sums_(4, rows, value_size) {}

void DecodingWalk::add(const WeightBlock& block) {
  std::vector<std::int32_t> kept, evicted, leaving;
  for (Index token = block.first; token < std::min(block.last, positions_.back() + 1); ++token) {
    const std::int32_t end = lifetimes_[static_cast<std::size_t>(token)];
    auto& tokens = end > positions_.back() ? kept : end <= positions_.front() ? evicted : leaving;
    tokens.push_back(static_cast<std::int32_t>(token - block.first));
  }
  sums_.add(0, block, kept);
  sums_.add(3, block, evicted);
  if (leaving.empty()) return;
  const LeavingTokens split(block, positions_, lifetimes_, leaving);
  sums_.add(1, split.while_kept(), split.tokens());
  sums_.add(2, split.once_evicted(), split.tokens());
}

void DecodingWalk::write(const Target& target) const { write_deltas(rows_, value_size_, sums_.sums(), 3, {1}, target); }

}  // namespace laprox::cpu
