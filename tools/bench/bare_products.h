#pragma once

#include "laprox/layer.h"

namespace laprox::bench {

/// Whose matrix product: the peers that a case is measured beside.
enum class Peer { eigen, openblas };

/// C [m, n] = A [m, k] B, B [k, n] or, transposed, [n, k]; all row-major and dense.
void product(Peer peer, Index m, Index n, Index k, const float* a, const float* b, bool transpose_b, float* c);

/// The bare products of each primitive on a layer: nothing but the multiplications that any implementation must do.
void causal_logits(Peer peer, const LayerTensors& layer);  ///< Q K^T below the diagonal, in blocks of 512 queries
void window_logits(Peer peer, const LayerTensors& layer);  ///< Q K^T of the stored queries
void value_gram(Peer peer, const LayerTensors& layer);     ///< V (W W^T) per query head
/// The window's logits, v M_ab per pair of query heads of a group, and V times one vector per query and ordered pair.
void removal(Peer peer, const LayerTensors& layer);
/// Q K^T and (o M) V^T below the diagonal; queries and values of one size.
void far_removal(Peer peer, const LayerTensors& layer);
/// One decoded query after the other: q K^T and p V over `kept` entries of every KV head, on `threads` threads.
void decoding_steps(const LayerTensors& layer, Index kept, int threads);
void exact_output(Peer peer, const LayerTensors& layer);  ///< Q K^T, P V and the output projection

}  // namespace laprox::bench
