#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "laprox/tensor.h"

namespace laprox {

/// The sizes of one attention layer.
struct LayerGeometry {
  Index query_heads = 0;  ///< H_q
  Index kv_heads = 0;     ///< H_kv, divides H_q
  Index head_size = 0;    ///< d, of queries and keys
  Index value_size = 0;   ///< d_v, of values
  Index model_size = 0;   ///< D, of the layer's output

  /// G: the query heads that read one KV head. Query head h reads KV head h / group().
  Index group() const { return query_heads / kv_heads; }
  bool operator==(const LayerGeometry&) const = default;
};

/// How the layer turns q and k into attention weights.
struct AttentionForm {
  double scale = 1.0;        ///< logit = scale * <q, k>
  double softcap = 0.0;      ///< 0: none; else logit = softcap * tanh(logit / softcap)
  Index sliding_window = 0;  ///< 0: none; else a query at p sees the keys p - sliding_window + 1 .. p
  std::vector<double> sinks =
      {};  ///< empty, or one learned logit per query head that joins the softmax denominator only
  /// Empty: not stated. Else [r / 2]: RoPE rotated channels j and j + r / 2 of position p by the angle p *
  /// rope_inv_freq[j]; channels from r on are as they were.
  std::vector<double> rope_inv_freq = {};

  /// The first key that a query at `position` sees; the last one is `position` itself.
  Index first_visible(Index position) const {
    return sliding_window > 0 && position >= sliding_window ? position - sliding_window + 1 : 0;
  }
};

/// One layer of a dump in memory, with the rows of q that were asked for. All four tensors share one element type:
/// float32, float64, or a half type for a backend that takes it.
struct LayerTensors {
  Index layer = 0;
  Index first_kv_head = 0;  ///< which KV head of the model's layer its first one is, where it has a part of them
  LayerGeometry geometry;
  AttentionForm attention;
  Index context_length = 0;            ///< C: the prompt's tokens; the others were decoded
  Index tokens = 0;                    ///< T >= C
  std::vector<Index> query_positions;  ///< [N] position of each row of q, ascending
  Tensor q;                            ///< [H_q, N, d]
  Tensor k;                            ///< [H_kv, T, d]
  Tensor v;                            ///< [H_kv, T, d_v]
  Tensor w_o;                          ///< [H_q * d_v, D]
  std::vector<double> bias;            ///< b_o: empty or [D]
  /// [N]: at each row of q, the L2 norm of the residual stream right after the layer's attention output was added to
  /// it. Empty where the dump does not store it.
  std::vector<double> residual_norms;

  Index queries() const { return static_cast<Index>(query_positions.size()); }
  Index bytes() const { return q.bytes() + k.bytes() + v.bytes() + w_o.bytes(); }
};

/// What a scorer may read of a layer: no query at a position >= context_length, because those are held out to judge it.
class LayerView {
 public:
  /// Throws Bug if `layer` holds a held-out query. `layer` must outlive the view.
  explicit LayerView(const LayerTensors& layer);
  /// A view for oracles alone, whose queries are the judging ones.
  static LayerView of_judged(const LayerTensors& layer) { return LayerView(layer, nullptr); }

  Index layer() const { return layer_.layer; }
  Index first_kv_head() const { return layer_.first_kv_head; }
  ElementType element_type() const { return layer_.k.type(); }
  const LayerGeometry& geometry() const { return layer_.geometry; }
  const AttentionForm& attention() const { return layer_.attention; }
  Index context_length() const { return layer_.context_length; }
  Index queries() const { return layer_.queries(); }

  /// The prompt's keys [C, d] and values [C, d_v] of one KV head, in float64.
  Matrix keys(Index kv_head) const;
  Matrix keys(Index kv_head, Index first, Index count) const;  ///< of `count` tokens from `first` on
  Matrix values(Index kv_head) const;
  /// Values [T - C, d_v] of the tokens behind the context.
  Matrix later_values(Index kv_head) const;
  /// The stored queries [N, d] of one query head, in float64, and their positions.
  Matrix queries_of(Index query_head) const;
  const std::vector<Index>& query_positions() const { return layer_.query_positions; }
  /// The norm of the residual stream at each of them [N], or empty: see LayerTensors.
  const std::vector<double>& residual_norms() const { return layer_.residual_norms; }
  /// W_O^h [d_v, D] of one query head, in float64.
  Matrix output_block(Index query_head) const;

 private:
  LayerView(const LayerTensors& layer, std::nullptr_t) : layer_(layer) {}

  const LayerTensors& layer_;
};

}  // namespace laprox
