#include "backends/cpu/far_rows.h"

#include <algorithm>
#include <cmath>

#include "backends/cpu/window_attention.h"
#include "base/parallel.h"

namespace laprox::cpu {

ValuePanels::ValuePanels(const LayerTensors& layer, Index kv_head, int threads)
    : centred(layer, kv_head), columns(centred.size(), layer.context_length) {
  const Index context = layer.context_length, blocks = (context + kKeyBlock - 1) / kKeyBlock, size = centred.size();
  for (Index block = 0; block < blocks; ++block) rows.emplace_back(kKeyBlock, size);
  parallel_for(threads, blocks, [&](Index block) {
    const Index first = block * kKeyBlock, last = std::min(context, first + kKeyBlock);
    Panels& target = rows[block];
    Buffer<float> values(kKeyBlock * size);
    centred.rows(first, last, values.data());
    std::fill(values.data() + (last - first) * size, values.data() + values.size(), 0.0F);
    for (Index i = 0; i < kKeyBlock; ++i) target.set_row(i, values.data() + i * size);
    // A block of keys is a whole number of panels, so no panel has two writers.
    for (Index p = first / kPanel; p * kPanel < last; ++p) {
      columns.set_panel_transposed(p, values.data() - first * size, size, 1.0F);
    }
  });
}

HeadForms::HeadForms(const LayerTensors& layer, Index head, const ValuePanels& values)
    : gram(cpu::gram(layer, head, head)),
      twice_gram(gram.rows(), gram.rows()),
      forms(padded(layer.context_length)),
      roots(padded(layer.context_length)) {
  for (Index k = 0; k < gram.rows(); ++k) twice_gram.set_row(k, FloatMatrix(2 * gram.row(k)).data());
  const QuadraticForm form(gram);
  const Index size = gram.rows(), context = layer.context_length;
  Buffer<float> block(kKeyBlock * size);
  Buffer<double> found(kKeyBlock);
  std::fill_n(forms.data(), forms.size(), 0.0F);
  std::fill_n(roots.data(), roots.size(), 0.0F);
  for (Index first = 0; first < context; first += kKeyBlock) {
    const Index last = std::min(context, first + kKeyBlock);
    values.centred.rows(first, last, block.data());
    form.evaluate(block.data(), last - first, found.data());
    for (Index i = first; i < last; ++i) {
      forms[i] = static_cast<float>(std::max(0.0, found[i - first]));
      roots[i] = std::sqrt(forms[i]);
    }
  }
}

FarRows::FarRows(const LayerTensors& layer, Index head, Index distance, const Panels& keys, const ValuePanels& values,
                 const HeadForms& forms, HeadSoftmax& softmax)
    : layer_(layer),
      head_(head),
      distance_(distance),
      values_(values),
      forms_(forms),
      softmax_(softmax),
      rows_(layer, head, keys),
      size_(values.centred.size()),
      rest_values_(kQueryBlock, size_),
      moments_(kQueryBlock, padded(size_)),
      linear_(kQueryBlock * kKeyBlock),
      part_(kQueryBlock * padded(size_)) {}

void FarRows::add(Index first, Index last, double* columns, double* energies, double* bounds) {
  rows_.compute(first, last, kKeyBlock);
  rows_.add_columns(columns);
  for (Index row = 0; row < last - first; ++row) set_dominant_apart(row, first + row);
  sum_values();
  form_outputs(first);
  add_dominant(first, energies);
  const Index reach = last - distance_;  // the last query counts keys before this one
  for (Index row = 0; row < last - first; ++row) {
    const Index counted = std::clamp<Index>(first + row - distance_ + 1 - rows_.first_key(), 0, rows_.stride());
    std::fill(rows_.row(row) + counted, rows_.row(row) + rows_.stride(), 0.0F);
  }
  for (Index block = rows_.first_key() / kKeyBlock; block * kKeyBlock < reach; ++block) {
    add_block(block, first, energies, bounds);
  }
}

/// Finds the key that has more than half of the query's weight, takes it out of the row, and sums the others.
void FarRows::set_dominant_apart(Index at, Index query) {
  const Index place = query - softmax_.first;
  float* row = rows_.row(at);
  softmax_.top[place] = -1;
  softmax_.largest[place] = rows_.largest(at);
  softmax_.total[place] = 1 / rows_.inverse(at);
  rest_[at] = static_cast<double>(softmax_.total[place]) - static_cast<double>(rows_.of_sink(at));
  if (softmax_.total[place] >= 2) return;
  float* top = std::find(row, row + rows_.stride(), 1.0F);  // exp(0); the sink's is the largest where there is none
  if (top == row + rows_.stride()) return;
  *top = 0;
  Lanes rest{};
  for (Index i = 0; i < rows_.stride(); i += kLanes) rest += load(row + i);
  softmax_.top[place] = static_cast<std::int32_t>(rows_.first_key() + (top - row));
  rest_[at] = sum(rest);
}

void FarRows::sum_values() {
  const Index rows = rows_.rows(), width = padded(size_);
  rest_values_.setZero();
  for (Index column = 0; column < rows_.stride(); column += kKeyBlock) {
    const Index count = std::min(kKeyBlock, rows_.stride() - column);
    const Panels& values = values_.rows[static_cast<std::size_t>((rows_.first_key() + column) / kKeyBlock)];
    multiply(rows, count, {rows_.row(0) + column, rows_.stride(), 1}, values, 0, values.count(), part_.data(), width);
    for (Index row = 0; row < rows; ++row) {
      for (Index c = 0; c < size_; ++c) rest_values_(row, c) += part_[row * width + c];
    }
  }
}

/// o - mean = (e_top v_top + sum of the others' e v - e_sink mean) / total, v being centred; a sink's value is 0.
void FarRows::form_outputs(Index first_query) {
  const Index first = first_query - softmax_.first;
  for (Index row = 0; row < rows_.rows(); ++row) {
    const Index place = first + row;
    const double of_sink = rows_.of_sink(row), top = softmax_.top[place] >= 0 ? 1 : 0;
    Eigen::RowVectorXd output = rest_values_.row(row) - of_sink * values_.centred.mean();
    if (top > 0) output += values_.centred.exact(softmax_.top[place]);
    softmax_.outputs.row(place) = (output / (top + rest_[row] + of_sink)).cast<float>();
  }
  multiply(rows_.rows(), size_, {&softmax_.outputs(first, 0), size_, 1}, forms_.twice_gram, 0,
           forms_.twice_gram.count(), moments_.data(), moments_.cols());
  for (Index row = 0; row < rows_.rows(); ++row) {
    const double twice =
        softmax_.outputs.row(first + row).cast<double>().dot(moments_.row(row).head(size_).cast<double>());
    squares_[row] = static_cast<float>(std::max(0.0, twice / 2));
    roots_[row] = std::sqrt(squares_[row]);
  }
}

/// The energies of the keys taken apart, from c (o - v) itself.
void FarRows::add_dominant(Index first_query, double* energies) {
  for (Index row = 0; row < rows_.rows(); ++row) {
    const Index query = first_query + row, place = query - softmax_.first, top = softmax_.top[place];
    if (top < 0 || top > query - distance_) continue;
    const double of_sink = rows_.of_sink(row), others = rest_[row] + of_sink, total = 1 + others;
    const double away = std::max(others / total, 1 - kLargestWeight);
    const Eigen::RowVectorXd value = values_.centred.exact(top);
    const Eigen::RowVectorXd difference =
        rest_values_.row(row) - rest_[row] * value - of_sink * (value + values_.centred.mean());
    const double factor = (1 - away) / away / total;
    const Eigen::RowVectorXf moved = (factor * difference).cast<float>();
    const double energy = (moved * forms_.gram).cast<double>().dot(moved.cast<double>());
    softmax_.top_energy[place] = energy;
    energies[top] += energy;
  }
}

/// c^2 (v M v + o M o - 2 v M o) of one block of keys, summed over the rows in float32.
void FarRows::add_block(Index block, Index first_query, double* energies, double* bounds) {
  const Index rows = rows_.rows(), first = block * kKeyBlock, column = first - rows_.first_key();
  const Index keys = std::min({kKeyBlock, rows_.stride() - column, padded(first_query + rows - distance_ - first)});
  multiply(rows, size_, {moments_.data(), moments_.cols(), 1}, values_.columns, first / kPanel, (first + keys) / kPanel,
           linear_.data(), kKeyBlock);
  float totals[kQueryBlock];
  for (Index row = 0; row < rows; ++row) totals[row] = softmax_.total[first_query - softmax_.first + row];
  for (Index i = 0; i < keys; i += kLanes) {
    const Lanes form = load(&forms_.forms[first + i]), root = load(&forms_.roots[first + i]);
    Lanes energy{}, bound{};
    for (Index row = 0; row < rows; ++row) {
      const Lanes e = load(rows_.row(row) + column + i);
      const Lanes odds = e / (totals[row] - e);
      const Lanes squared = odds * odds, roots = root + roots_[row];
      energy += squared * (form + squares_[row] - load(&linear_[row * kKeyBlock + i]));
      bound += squared * (roots * roots);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      energies[first + i + lane] += energy[lane];
      bounds[first + i + lane] += bound[lane];
    }
  }
}

}  // namespace laprox::cpu
