#pragma once

#include "backends/cuda/double_product.cuh"
#include "backends/cuda/kernels.h"

namespace laprox::cuda {

/// Pairs of heads of a group: all ordered ones where they are joint, else each head with itself.
struct Pairs {
  int group;
  bool joint;
  __host__ __device__ int count() const { return joint ? group * group : group; }
  __host__ __device__ int first(int pair) const { return joint ? pair / group : pair; }
  __host__ __device__ int second(int pair) const { return joint ? pair % group : pair; }
};

/// What the kernels of one KV head and one range of its queries share.
struct Group {
  Layer layer;
  QueryRange range;
  int kv_head, resident, rows;
  int tokens;  ///< that one of the range's queries may see: [0, tokens)
  Pairs pairs;
  __device__ int row(int head, int query) const {
    return (query / resident * layer.group + head) * resident + query % resident;
  }
};

template <class T>
struct Values {
  const T* values;
  int stride;
  __device__ double operator()(int token, int c) const {
    return to_double(values[static_cast<size_t>(token) * stride + c]);
  }
};

template <class T>
Values<T> values_of(const Layer& layer, int kv_head) {
  return {static_cast<const T*>(layer.v) + static_cast<size_t>(kv_head) * layer.tokens * layer.value_stride,
          layer.value_stride};
}

// The factors of the products in float64.

template <class T>
struct Blocks {  ///< W^a of a pair's first or second head: row r of it at depth k
  const T* w_o;
  int stride, size, first_head;
  Pairs pairs;
  bool second;
  __device__ double at(int pair, int r, int k) const {
    const int head = first_head + (second ? pairs.second(pair) : pairs.first(pair));
    return to_double(w_o[(static_cast<size_t>(head) * size + r) * stride + k]);
  }
};
template <class T>
struct LeftBlocks : Blocks<T> {
  __device__ double operator()(int pair, int row, int k) const { return this->at(pair, row, k); }
};
template <class T>
struct RightBlocks : Blocks<T> {
  __device__ double operator()(int pair, int k, int column) const { return this->at(pair, column, k); }
};

/// The weight from which on an entry dominates its row: at most one does.
inline constexpr double kDominantWeight = 0.75;

struct TokenWeights {  ///< weights of a share of the tokens, transposed, but for those of dominant entries
  const double* weights;
  int rows, share, tokens;
  __device__ double operator()(int split, int row, int k) const {
    const int token = split * share + k;
    const double weight = token < tokens ? weights[static_cast<size_t>(token) * rows + row] : 0;
    return weight > kDominantWeight ? 0 : weight;
  }
};
template <class T>
struct ShareValues {
  Values<T> values;
  int share, tokens;
  __device__ double operator()(int split, int k, int c) const {
    const int token = split * share + k;
    return token < tokens ? values(token, c) : 0;
  }
};

template <class T>
struct BlockValues {
  Values<T> values;
  int first;
  __device__ double operator()(int, int row, int k) const { return values(first + row, k); }
};
struct StackedGrams {  ///< column (pair, c) of v M_ab
  const double* grams;
  int size;
  __device__ double operator()(int, int k, int column) const {
    return grams[(static_cast<size_t>(column / size) * size + k) * size + column % size];
  }
};
struct MomentColumns {
  const double* moments;
  int size;
  __device__ double operator()(int, int k, int column) const { return moments[static_cast<size_t>(column) * size + k]; }
};

}  // namespace laprox::cuda
