#pragma once

#include "backends/cuda/kernels.h"

namespace laprox::cuda {

// walk.cu: one walk along a KV head's ranking judges all its kept sets, as in the cpu backend. The tokens are cut into
// pieces; a piece's softmax numerators are summed once, and every kept set (a CELL) reads its sums off the pieces
// before its cut and the evicted ones off those behind it. Differences are formed as w (o_kept - o_evicted), so that no
// two nearly equal outputs are subtracted.

/// The rows of a logit table [T, rows] and whose queries they are.
struct TableShape {
  int rows, resident, group, queries;  ///< see RowLayout; queries: of the range
  int value_size;
  const float* sinks;  ///< nullptr, or the sink logits of the group's heads
};

/// Per piece and row: the largest logit m [pieces, rows], the sum of exp(logit - m) [pieces, rows], and the values
/// weighted with that [pieces, rows, value_size].
struct PieceSums {
  float *maximum, *sum, *values;
};

/// Where head outputs go: element c of the head's query at first[cell * cell_stride + query * query_stride + head *
/// value_size + c].
struct OutputRows {
  float* first;
  float* kept;  ///< where kept outputs go, at the same strides; nullptr of the exact outputs
  long long cell_stride, query_stride;
};

/// Where evicted shares go: first[cell * cell_stride + head * head_stride + query].
struct ShareRows {
  double* first;
  long long cell_stride, head_stride;
};

/// The cells of a walk in ascending order of their counts. Segment 0 is what every cell keeps, segment s + 1 what cell
/// s is the last one not to keep; segment s has the pieces [segments[s], segments[s + 1]). In device memory.
struct WalkRoute {
  int cells;
  const int* segments;  ///< [cells + 2]
  const int* slots;     ///< [cells] the output cell of each
};

/// Sums of the tokens order[bounds[p]] .. order[bounds[p + 1] - 1] for every piece p; order == nullptr: the tokens
/// themselves.
void piece_sums(const Layer& layer, int kv_head, const TableShape& table, const float* logits, const int* order,
                const int* bounds, int pieces, PieceSums sums, cudaStream_t stream);
/// The attention outputs over all pieces together, written to cell 0.
void exact_outputs(const TableShape& table, PieceSums sums, int pieces, OutputRows out, cudaStream_t stream);
/// Kept minus exact outputs and kept outputs of every cell, and the evicted share of each row's softmax denominator.
void deltas(const TableShape& table, PieceSums sums, const WalkRoute& route, bool truncated, OutputRows out,
            ShareRows shares, cudaStream_t stream);
/// Rows `rows` [count] of x [.., width], one behind the other.
void gather_rows(const float* x, const int* rows, int count, int width, float* gathered, cudaStream_t stream);
/// Squared norms over all queries of each head's part of outputs [cells, queries, H_q * value_size]: [cells, H_q].
void head_squares(const Layer& layer, const float* outputs, int cells, int queries, double* squares,
                  cudaStream_t stream);

}  // namespace laprox::cuda
