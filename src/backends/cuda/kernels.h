#pragma once

#include "backends/cuda/layer.h"

namespace laprox::cuda {

// The primitives on the device, one file each. All of them are ordered on `stream` and return at once; outputs are in
// device memory, row-major. Sums have one order on one kind of device: a second run gives the same bits.

/// Stored queries [first, first + count) of a layer.
struct QueryRange {
  int first = 0, count = 0;
};

/// Query rows of one KV head as kernels hold them: see rows.cuh.
struct RowLayout {
  int resident = 0;    ///< queries per row block
  int row_blocks = 0;  ///< per KV head
  int rows() const { return row_blocks * resident; }

  RowLayout(const Layer& layer, QueryRange range);
  /// The row of a query, counted from the range's first one, of one head of the group.
  int row(int head_in_group, int group, int query) const {
    return (query / resident * group + head_in_group) * resident + query % resident;
  }
};

/// Softmax of one query row: the largest logit, times log2(e), and 1 / sum of exp(logit - largest); 0 for padding rows.
struct RowSoftmax {
  float maximum, inverse_sum;
};

/// row_softmax.cu: [kv_heads, rows], over all keys that each query sees and the head's sink. `partial` is scratch.
void row_softmax(const Layer& layer, QueryRange range, DeviceBuffer<float2>& partial, DeviceBuffer<RowSoftmax>& softmax,
                 cudaStream_t stream);

/// window.cu: sum_t A_h[t, i] and sum_t A_h[t, i]^2 over the queries of `range`: [query_heads, C] each. `sums` may be
/// nullptr.
void window_columns(const Layer& layer, QueryRange range, const RowSoftmax* softmax, float* sums, float* squares,
                    cudaStream_t stream);

/// column_sums.cu: sum_{t >= i} A_h[t, i] over all queries, which must be those at the positions 0 .. N - 1:
/// [query_heads, C].
void all_columns(const Layer& layer, const RowSoftmax* softmax, float* sums, cudaStream_t stream);

/// logits.cu: logits [T, rows] of one KV head's rows against all its keys, -infinity where a query does not see one.
/// Sums are exact unless asked for otherwise: fast ones come from the tensor cores, for half types and many queries.
enum class LogitSums { exact, fast };
void logit_table(const Layer& layer, QueryRange range, int kv_head, float* logits, cudaStream_t stream,
                 LogitSums sums = LogitSums::exact);
/// The same table as attention weights, in place; 0 in padding rows. `softmax` is scratch.
void to_weights(const Layer& layer, QueryRange range, int kv_head, float* table, DeviceBuffer<float2>& softmax,
                cudaStream_t stream);
/// <A_a[:, i], A_b[:, i]> for all pairs of heads of the group, from a table of weights: [G * G, C].
void weight_products(const Layer& layer, QueryRange range, const float* weights, float* products, cudaStream_t stream);

/// A pair of query heads of one group: the form v W^a (W^b)^T v^T.
struct FormPair {
  int a, b;
};
/// The forms' matrices, folded onto a triangle and laid out for the tensor cores: see forms.cuh.
struct PackedForms {
  DeviceBuffer<float> gram;       ///< [forms, splits, value_stride, value_stride], scratch
  DeviceBuffer<float> largest;    ///< scratch
  DeviceBuffer<uint4> triangles;  ///< [forms, chunks]
  DeviceBuffer<float> scales;     ///< [forms] what results are multiplied with
};

/// gram.cu: packs the matrices W^a (W^b)^T of `count` pairs in device memory.
void pack_forms(const Layer& layer, const FormPair* pairs, int count, PackedForms& forms, cudaStream_t stream);
/// value_forms.cu: v_i W^a (W^b)^T v_i^T for `per_kv_head` consecutive forms of each KV head: [forms, C]; with
/// `square_root`, the root of it.
void value_forms(const Layer& layer, const PackedForms& forms, int per_kv_head, bool square_root, float* out,
                 cudaStream_t stream);

/// projection.cu: head outputs [queries, H_q * value_size] times W_o plus bias (nullptr: none): [queries, D].
void project_exact(const Layer& layer, const float* heads, int queries, const float* bias, float* exact,
                   cudaStream_t stream);
/// For each of `rows` rows x, the row's query being its index modulo `queries`: ||x W_o||^2 and <x W_o, exact>.
void project_errors(const Layer& layer, const float* deltas, int rows, const float* exact, int queries,
                    DeviceBuffer<double2>& partial, double2* sums, cudaStream_t stream);
/// For each of `rows` rows x, of the query query_of_row[row]: ||x W_o + bias||^2 and <x W_o + bias, exact>.
void project_kept(const Layer& layer, const float* kept, int rows, const float* bias, const float* exact,
                  const int* query_of_row, DeviceBuffer<double2>& partial, double2* sums, cudaStream_t stream);
/// ||v_i W_O^h||_1 of one query head: the x of [C].
void value_absolute_sums(const Layer& layer, int head, DeviceBuffer<double2>& partial, double2* sums,
                         cudaStream_t stream);

// Primitives that have a second kernel for half types, with instructions that sm_90a alone has: what their files
// (*_sm90.cu) offer to the first ones, which choose.

/// Whether the layer goes to these kernels.
inline bool use_sm90(const Layer& layer) { return runs_sm90() && layer.element != Element::float32; }

/// Partial softmaxes of the rows, [parts, kv_heads, rows] of (shift, sum); returns the number of parts.
int row_parts_sm90(const Layer& layer, QueryRange range, DeviceBuffer<float2>& partial, cudaStream_t stream);
void window_columns_sm90(const Layer& layer, QueryRange range, const RowSoftmax* softmax, float* sums, float* squares,
                         cudaStream_t stream);
void all_columns_sm90(const Layer& layer, const RowSoftmax* softmax, float* sums, cudaStream_t stream);
/// Partial products W^a (W^b)^T and their largest magnitudes: see gram.cuh.
void partial_products_sm90(const Layer& layer, const FormPair* pairs, int count, float* gram, float* largest,
                           cudaStream_t stream);
void value_forms_sm90(const Layer& layer, const PackedForms& forms, int per_kv_head, bool square_root, float* out,
                      cudaStream_t stream);

}  // namespace laprox::cuda
