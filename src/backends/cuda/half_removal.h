#pragma once

#include <cuda_fp16.h>

#include "backends/cuda/kernels.h"

namespace laprox::cuda {

// Energies of removal on the tensor cores, for half types. With c = a / (1 - a) and M_ab = W^a (W^b)^T, the energy of
// an entry at a query is sum_ab c_a c_b (v M_ab v - 2 v M_ab o_b + o_a M_ab o_b), over the pairs a <= b of the group's
// heads, a pair of two heads standing for both of its orders. Sums are float32, and every factor has at least 22 bits:
// a value is one float16 number, weights and moments M_ab o_b are two.
//
// Where one weight a of a row is nearly everything, c is large and o - v small, and neither can be had from a. Of a row
// with such a DOMINANT entry the REST is summed instead: the weights but the dominant one, R, and the values weighted
// with them, N. So is c = a / R and c (o - v) = c (N - R v), with every digit.

/// The largest head_stride and value_stride, which must be the same: registers hold no more.
inline constexpr int kMostHalfSize = 128;
/// The largest group.
inline constexpr int kMostGroup = 8;
/// The weight from which on an entry dominates its row: at most one does.
inline constexpr float kDominant = 0.75F;

/// One row: its softmax, and the entry that dominates it (-1: none) with its weight.
struct Dominant {
  int token;
  float weight;
};

/// What a cell needs of its row; `token` is the dominant entry or -1, and `energy` that entry's energy at this query.
struct RowTerms {
  float maximum, inverse_sum;
  int token;
  float energy;
};
/// What a cell needs of a query and a pair of heads: the power of two of its moments, and o_a M_ab o_b.
struct PairTerms {
  float scale, square;
};

/// Pairs a <= b of a group's heads where they are joint, else each head with itself.
struct HeadPairs {
  int group;
  bool joint;
  __host__ __device__ int count() const { return joint ? group * (group + 1) / 2 : group; }
  __host__ __device__ FormPair operator[](int pair) const {
    if (!joint) return {pair, pair};
    int a = 0;
    while (pair >= group - a) pair -= group - a++;
    return {a, a + pair};
  }
  /// Which of the matrices of a KV head is M_ab.
  __host__ __device__ int matrix(int a, int b) const { return joint ? a * group + b : a; }
  __host__ __device__ int matrices() const { return joint ? group * group : group; }
};

/// Everything about some queries that energies are formed from, in device memory. Rows as in rows.cuh; `padded` queries
/// are those with the padding of row blocks; S: value_stride.
struct HalfTerms {
  Layer layer;
  QueryRange range;
  HeadPairs pairs;
  int rows = 0, padded = 0;
  const __half* values = nullptr;       ///< [kv_heads, T, S] times a power of two
  const float* value_scales = nullptr;  ///< [kv_heads] that undoes it
  /// [kv_heads] shares that the values' variance has of their mean square, and the largest magnitude of a row's largest
  /// logit, times log2(e): float32 has digits enough for some alone.
  float* fitness = nullptr;
  const RowSoftmax* softmax = nullptr;  ///< [kv_heads, rows]
  float* rests = nullptr;               ///< [kv_heads, rows, S] N
  float* remainders = nullptr;          ///< [kv_heads, rows] R
  Dominant* dominants = nullptr;        ///< [kv_heads, rows]
  float* grams = nullptr;               ///< [kv_heads, matrices, S, S]
  __half* moments = nullptr;            ///< [kv_heads, pairs, padded, 2, S] of the linear term, high and low parts
  PairTerms* pair_terms = nullptr;      ///< [kv_heads, pairs, padded]
  RowTerms* row_terms = nullptr;        ///< [kv_heads, group, padded]
  const float* forms = nullptr;         ///< [kv_heads, pairs, C] v W^a (W^b)^T v
};

/// Memory of HalfTerms and scratch.
struct HalfScratch {
  Stream side;  ///< for what depends on the values alone
  Event begun, grams_formed, values_formed;
  DeviceBuffer<__half> values, moments;
  DeviceBuffer<float> value_scales, value_parts, parts, rests, remainder_parts, remainders, grams, forms, fitness;
  DeviceBuffer<float2> partial;
  DeviceBuffer<RowSoftmax> softmax;
  DeviceBuffer<Dominant> dominants;
  DeviceBuffer<PairTerms> pair_terms;
  DeviceBuffer<RowTerms> row_terms;
  DeviceBuffer<FormPair> pairs;
  DeviceBuffer<double> by_head;
  PackedForms packed;
};

/// half_values.cu: values as float16 numbers, their scales and their variance.
void half_values(HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream);
/// half_outputs.cu: rests, remainders and dominant entries, from the softmaxes.
void half_outputs(HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream);
/// half_moments.cu: Gram matrices from scratch.packed, moments, and the terms of rows and pairs.
void half_moments(HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream);
/// window_energies.cu: energies [kv_heads, C] over the queries of terms.range: their sum, or the largest one.
/// It needs window_shared_bytes of a block's shared memory.
int window_shared_bytes(const Layer& layer);
void window_energies(const HalfTerms& terms, bool maximum, double* energies, cudaStream_t stream);
/// window_energies_sm90.cu: the same of joint heads, by a kernel for sm_90a.
void window_energies_sm90(const HalfTerms& terms, bool maximum, double* energies, cudaStream_t stream);
/// far_energies.cu: energies [kv_heads, C] over those queries of terms.range, the last ones of the prompt, that are
/// `distance` or more behind an entry; of each head alone. by_head: scratch [query_heads, C].
void far_head_energies(const HalfTerms& terms, int distance, double* by_head, double* energies, cudaStream_t stream);
/// far_energies_sm90.cu: those of each head, [query_heads, C], by a kernel for sm_90a.
void far_head_energies_sm90(const HalfTerms& terms, int distance, double* by_head, cudaStream_t stream);

}  // namespace laprox::cuda
