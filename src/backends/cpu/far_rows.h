#pragma once

#include <vector>

#include "backends/cpu/causal_rows.h"
#include "backends/cpu/centred_values.h"
#include "backends/cpu/quadratic_form.h"

namespace laprox::cpu {

/// Keys whose values are multiplied at a time: their products stay in the second-level cache, and float32 sums over
/// them join the others in float64.
inline constexpr Index kKeyBlock = 1024;

/// One KV head's centred values, arranged for both products of a pass over all prompt queries.
struct ValuePanels {
  ValuePanels(const LayerTensors& layer, Index kv_head, int threads);

  CentredValues centred;
  Panels columns;            ///< [d_v, C]: products of vectors with every value
  std::vector<Panels> rows;  ///< by block of kKeyBlock keys, [kKeyBlock, d_v]: weighted sums of values
};

/// One query head's W_O^h (W_O^h)^T and its form at every centred value.
struct HeadForms {
  HeadForms(const LayerTensors& layer, Index head, const ValuePanels& values);

  FloatMatrix gram;     ///< M [d_v, d_v]
  Panels twice_gram;    ///< 2 M
  Buffer<float> forms;  ///< [padded C] v M v
  Buffer<float> roots;  ///< [padded C] its root
};

/// What the softmax of the last prompt queries of one head, those from `first` on, came to; by query - first.
struct HeadSoftmax {
  HeadSoftmax(const LayerTensors& layer, Index first_query)
      : first(first_query),
        outputs(layer.context_length - first, layer.geometry.value_size),
        largest(layer.context_length - first),
        total(layer.context_length - first),
        top_energy(layer.context_length - first),
        top(layer.context_length - first) {}

  Index first;
  FloatMatrix outputs;        ///< [queries, d_v] o minus the values' mean
  Buffer<float> largest;      ///< of the logits and the sink's
  Buffer<float> total;        ///< sum of exp(logit - largest), the sink's included
  Buffer<double> top_energy;  ///< the energy of the key that has more than half of the weight
  Buffer<std::int32_t> top;   ///< that key; -1 where there is none
};

/// Adds up, over blocks of queries of one head, the energies c^2 ||(o - v_i) W_O||^2 of keys at a distance or more.
class FarRows {
 public:
  FarRows(const LayerTensors& layer, Index head, Index distance, const Panels& keys, const ValuePanels& values,
          const HeadForms& forms, HeadSoftmax& softmax);

  /// Takes the queries [first, last). columns[key] gets their weights as for column sums; energies[key] the energies,
  /// and bounds[key] what their terms' absolute values could add up to.
  void add(Index first, Index last, double* columns, double* energies, double* bounds);

 private:
  void set_dominant_apart(Index row, Index query);
  void sum_values();
  void form_outputs(Index first_query);
  void add_dominant(Index first_query, double* energies);
  void add_block(Index block, Index first_query, double* energies, double* bounds);

  const LayerTensors& layer_;
  Index head_, distance_;
  const ValuePanels& values_;
  const HeadForms& forms_;
  HeadSoftmax& softmax_;
  CausalRows rows_;
  Index size_;
  Matrix rest_values_;                               ///< [rows, d_v] sum of e v over all keys but the dominant one
  double rest_[kQueryBlock];                         ///< sum of e over the same
  FloatMatrix moments_;                              ///< [rows, padded d_v] 2 o M
  float squares_[kQueryBlock], roots_[kQueryBlock];  ///< o M o and its root
  Buffer<float> linear_, part_;
};

}  // namespace laprox::cpu
