#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/gram.cuh"
#include "backends/cuda/half_removal.h"
#include "backends/cuda/left_rows.cuh"

namespace laprox::cuda {

namespace {

constexpr int kGramSide = 32, kGramRows = 8;
constexpr int kMomentThreads = 512;
/// Queries of a block: more have more for each number that they read of a matrix, fewer keep more blocks busy.
constexpr int kFewQueries = 16, kManyQueries = 32;
constexpr int kDominantThreads = 128;
constexpr double kLargestWeight = 1 - 1e-6;

__device__ inline int row_of(const HalfTerms& terms, int kv_head, int head, int query) {
  return kv_head * terms.rows + (query / kRowBlockRows * terms.layer.group + head) * kRowBlockRows +
         query % kRowBlockRows;
}

__device__ inline const float* gram_of(const HalfTerms& terms, int kv_head, int a, int b, int size) {
  return terms.grams + static_cast<size_t>(kv_head * terms.pairs.matrices() + terms.pairs.matrix(a, b)) * size * size;
}

/// M_ab and M_ba in full from the partial products of gram.cu, [pairs, splits, Size, Size]. Block (square of
/// kGramSide x kGramSide, pair, KV head), thread (column, row): through shared memory, so that both are written row by
/// row.
__global__ void __launch_bounds__(kGramSide* kGramRows)
    grams_kernel(HalfTerms terms, const float* partial, int splits, int size) {
  __shared__ float square[kGramSide][kGramSide + 1];
  const int squares = size / kGramSide, pair = static_cast<int>(blockIdx.y), kv_head = static_cast<int>(blockIdx.z);
  const int first_row = static_cast<int>(blockIdx.x) / squares * kGramSide,
            first_column = static_cast<int>(blockIdx.x) % squares * kGramSide;
  const int column = static_cast<int>(threadIdx.x);
  const auto [a, b] = terms.pairs[pair];
  const float* parts = partial + static_cast<size_t>(kv_head * terms.pairs.count() + pair) * splits * size * size +
                       first_row * size + first_column + column;
  float* grams = terms.grams + static_cast<size_t>(kv_head * terms.pairs.matrices()) * size * size;
  float* of_ab = grams + static_cast<size_t>(terms.pairs.matrix(a, b)) * size * size;
  float* of_ba = grams + static_cast<size_t>(terms.pairs.matrix(b, a)) * size * size;
#pragma unroll
  for (int row = static_cast<int>(threadIdx.y); row < kGramSide; row += kGramRows) {
    float sum = 0;
    for (int split = 0; split < splits; ++split) sum += parts[static_cast<size_t>(split) * size * size + row * size];
    of_ab[(first_row + row) * size + first_column + column] = sum;
    square[row][column] = sum;
  }
  if (a == b) return;
  __syncthreads();
#pragma unroll
  for (int row = static_cast<int>(threadIdx.y); row < kGramSide; row += kGramRows) {
    of_ba[(first_column + row) * size + first_row + column] = square[column][row];
  }
}

/// A head's output at a query: the rest, and its dominant entry if there is one.
template <int Size>
__device__ inline float output_of(const HalfTerms& terms, int kv_head, int row, int c) {
  float output = terms.rests[static_cast<size_t>(row) * Size + c];
  const Dominant dominant = terms.dominants[row];
  if (dominant.token >= 0) {
    const __half value = terms.values[(static_cast<size_t>(kv_head) * terms.layer.tokens + dominant.token) * Size + c];
    output += dominant.weight * terms.value_scales[kv_head] * __half2float(value);
  }
  return output;
}

/// Component c of a head's outputs at the queries from `first_query` on. Dominant entries are few: what is read for all
/// queries is on its way before the first of them is looked at.
template <int Size, int Each>
__device__ inline void load_outputs(float (*out)[Size], const HalfTerms& terms, int kv_head, int head, int first_query,
                                    int c) {
  float rests[Each];
  int tokens[Each], any = -1;
#pragma unroll
  for (int i = 0; i < Each; ++i) {
    const int row = row_of(terms, kv_head, head, first_query + i);
    rests[i] = terms.rests[static_cast<size_t>(row) * Size + c];
    tokens[i] = terms.dominants[row].token;
  }
#pragma unroll
  for (int i = 0; i < Each; ++i) {
    out[i][c] = rests[i];
    any = max(any, tokens[i]);
  }
  if (any < 0) return;
  for (int i = 0; i < Each; ++i) {
    out[i][c] = output_of<Size>(terms, kv_head, row_of(terms, kv_head, head, first_query + i), c);
  }
}

/// sums[i] += component c of rows[i] times a matrix, whose column c begins at `column`.
template <int Size, int Each>
__device__ inline void add_gram(float (&sums)[Each], const float* column, const float (*rows)[Size]) {
  constexpr int kTogether = 16;  // loads on their way
  float next[kTogether];
#pragma unroll
  for (int j = 0; j < kTogether; ++j) next[j] = __ldg(column + j * Size);
#pragma unroll 1
  for (int first = 0; first < Size; first += kTogether) {
    float m[kTogether];
    column += kTogether * Size;
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      m[j] = next[j];
      if (first + kTogether < Size) next[j] = __ldg(column + j * Size);
    }
#pragma unroll
    for (int i = 0; i < Each; ++i) {
#pragma unroll
      for (int j = 0; j < kTogether; j += 4) {
        const float4 x = *reinterpret_cast<const float4*>(&rows[i][first + j]);
        sums[i] =
            __fmaf_rn(m[j + 3], x.w, __fmaf_rn(m[j + 2], x.z, __fmaf_rn(m[j + 1], x.y, __fmaf_rn(m[j], x.x, sums[i]))));
      }
    }
  }
}

/// Block (Queries queries, pair, KV head), a thread has one component of some of them: the moments
/// M_ab o_b + M_ba o_a, doubled, in two parts, and the term o_a M_ab o_b in as many orders as the pair stands for.
template <int Size, int Queries>
__global__ void __launch_bounds__(kMomentThreads) moments_kernel(HalfTerms terms) {
  constexpr int kEach = Queries * Size / kMomentThreads, kWarpsPerRow = Size / 32;
  __shared__ __align__(16) float of_a[Queries][Size], of_b[Queries][Size];
  __shared__ float2 of_warp[Queries][kWarpsPerRow];  // square, largest moment
  const int kv_head = static_cast<int>(blockIdx.z), pair = static_cast<int>(blockIdx.y),
            first_query = static_cast<int>(blockIdx.x) * Queries;
  const auto [a, b] = terms.pairs[pair];
  const int c = static_cast<int>(threadIdx.x) % Size, first = static_cast<int>(threadIdx.x) / Size * kEach;
  load_outputs<Size, kEach>(of_a + first, terms, kv_head, a, first_query + first, c);
  if (a != b) load_outputs<Size, kEach>(of_b + first, terms, kv_head, b, first_query + first, c);
  __syncthreads();
  const float *to_a = gram_of(terms, kv_head, a, b, Size), *to_b = gram_of(terms, kv_head, b, a, Size);
  float from_a[kEach] = {}, from_b[kEach] = {};
  add_gram<Size>(from_a, to_a + c, of_a + first);
  if (a != b) add_gram<Size>(from_b, to_b + c, of_b + first);
  float moment[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    moment[i] = 2 * (from_a[i] + from_b[i]);
    float square = a == b ? from_a[i] * of_a[first + i][c] : 2 * from_a[i] * of_b[first + i][c];
    float largest = fabsf(moment[i]);
    for (int other = 16; other > 0; other /= 2) {
      square += __shfl_xor_sync(~0U, square, other);
      largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, other));
    }
    if (threadIdx.x % 32 == 0) of_warp[first + i][c / 32] = make_float2(square, largest);
  }
  __syncthreads();
  const size_t at = (static_cast<size_t>(kv_head) * terms.pairs.count() + pair) * terms.padded + first_query + first;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    float square = 0, largest = 0;
    for (const float2& part : of_warp[first + i]) {
      square += part.x;
      largest = fmaxf(largest, part.y);
    }
    const float exponent = largest > 0 ? fminf(fmaxf(floorf(log2f(largest)) - 13, -120), 120) : 0;
    const float scaled = moment[i] * exp2f(-exponent);
    const __half high = __float2half_rn(scaled);
    __half* out = terms.moments + (at + i) * 2 * Size + c;
    out[0] = high;
    out[Size] = __float2half_rn(scaled - __half2float(high));
    if (c == 0) terms.pair_terms[at + i] = {exp2f(exponent) * terms.value_scales[kv_head], square};
  }
}

/// c = a / (1 - a) of a dominant entry, with the weight capped as the definition has it.
__device__ inline float dominant_odds(float weight, float remainder) {
  constexpr float kMost = static_cast<float>(kLargestWeight / (1 - kLargestWeight));
  return remainder > 0 ? fminf(weight / remainder, kMost) : kMost;
}

/// The weight of an entry at one row, by this warp.
template <class T, int Size>
__device__ inline float weight_of(const HalfTerms& terms, int kv_head, int head, int query, int row, int token) {
  const Layer& layer = terms.layer;
  const T* q = static_cast<const T*>(layer.q) +
               (static_cast<size_t>(kv_head * layer.group + head) * layer.queries + terms.range.first + query) * Size;
  const T* k = static_cast<const T*>(layer.k) + (static_cast<size_t>(kv_head) * layer.tokens + token) * Size;
  float product[1][4] = {};
  for (int c = static_cast<int>(threadIdx.x) % 32; c < Size; c += 32) {
    product[0][0] = __fmaf_rn(to_float(q[c]), to_float(k[c]), product[0][0]);
  }
  for (int other = 16; other > 0; other /= 2) product[0][0] += __shfl_xor_sync(~0U, product[0][0], other);
  const LogitForm form(layer);
  form.apply_cap(product);
  const RowSoftmax softmax = terms.softmax[row];
  return fast_exp2(__fmaf_rn(product[0][0], form.factor, -softmax.maximum)) * softmax.inverse_sum;
}

/// Block (query, head, KV head): the row's terms. If it has a dominant entry, that one's energy at this query is the
/// square of y = sum_h c_h (o_h - v) W^h, over the group's heads or this one alone.
template <class T, int Size>
__global__ void __launch_bounds__(kDominantThreads) dominants_kernel(HalfTerms terms) {
  extern __shared__ float changes[];  // c_h (o_h - v), [heads, Size]
  __shared__ float of_warp[kDominantThreads / 32];
  const int query = static_cast<int>(blockIdx.x), own = static_cast<int>(blockIdx.y),
            kv_head = static_cast<int>(blockIdx.z), thread = static_cast<int>(threadIdx.x);
  const int row = row_of(terms, kv_head, own, query), group = terms.layer.group;
  const Dominant dominant = terms.dominants[row];
  RowTerms* out = terms.row_terms + static_cast<size_t>(kv_head * group + own) * terms.padded + query;
  const RowSoftmax softmax = terms.softmax[row];
  if (dominant.token < 0) {
    if (thread == 0) *out = {softmax.maximum, softmax.inverse_sum, -1, 0};
    return;
  }
  const int first = terms.pairs.joint ? 0 : own, heads = terms.pairs.joint ? group : 1;
  const __half* value = terms.values + (static_cast<size_t>(kv_head) * terms.layer.tokens + dominant.token) * Size;
  const float scale = terms.value_scales[kv_head];
  for (int h = thread / 32; h < heads; h += kDominantThreads / 32) {
    const int of_head = row_of(terms, kv_head, first + h, query);
    const bool dominates = terms.dominants[of_head].token == dominant.token;
    const float weight = dominates ? terms.dominants[of_head].weight
                                   : weight_of<T, Size>(terms, kv_head, first + h, query, of_head, dominant.token);
    const float remainder = terms.remainders[of_head];
    const float odds = dominates ? dominant_odds(weight, remainder) : weight / (1 - weight);
    for (int c = thread % 32; c < Size; c += 32) {
      const float v = scale * __half2float(value[c]);
      const float output = dominates ? terms.rests[static_cast<size_t>(of_head) * Size + c]
                                     : output_of<Size>(terms, kv_head, of_head, c);
      changes[h * Size + c] = odds * (output - (dominates ? remainder * v : v));
    }
  }
  __syncthreads();
  float energy = 0;
  for (int at = thread; at < heads * Size; at += kDominantThreads) {
    const int b = at / Size, c = at % Size;
    float sum = 0;
    for (int a = 0; a < heads; ++a) {
      const float* gram = gram_of(terms, kv_head, first + a, first + b, Size);
      for (int k = 0; k < terms.layer.value_size; ++k) sum = __fmaf_rn(gram[k * Size + c], changes[a * Size + k], sum);
    }
    energy += sum * changes[at];
  }
  for (int other = 16; other > 0; other /= 2) energy += __shfl_xor_sync(~0U, energy, other);
  if (thread % 32 == 0) of_warp[thread / 32] = energy;
  __syncthreads();
  if (thread != 0) return;
  float sum = 0;
  for (float part : of_warp) sum += part;
  *out = {softmax.maximum, softmax.inverse_sum, dominant.token, fmaxf(sum, 0)};
}

}  // namespace

void half_moments(HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream) {
  const Layer& layer = terms.layer;
  const int pairs = terms.pairs.count(), size = layer.value_stride, kv_heads = layer.kv_heads;
  const size_t cells = static_cast<size_t>(kv_heads) * pairs * terms.padded;
  terms.grams = scratch.grams.at_least(static_cast<size_t>(kv_heads) * terms.pairs.matrices() * size * size);
  terms.moments = scratch.moments.at_least(cells * 2 * size);
  terms.pair_terms = scratch.pair_terms.at_least(cells);
  terms.row_terms = scratch.row_terms.at_least(static_cast<size_t>(kv_heads) * terms.rows);
  for_half_and_size(layer.element, size, [&]<class T, int Size>() {
    if constexpr (Size <= kMostHalfSize) {
      constexpr int kSquares = Size / kGramSide * (Size / kGramSide);
      grams_kernel<<<dim3(kSquares, pairs, kv_heads), dim3(kGramSide, kGramRows), 0, stream>>>(
          terms, scratch.packed.gram.data(), GramBlock<T, Size>::kSplits, Size);
      check_launch("Gram matrices in full");
      const auto form = [&]<int Queries>() {
        moments_kernel<Size, Queries>
            <<<dim3(terms.padded / Queries, pairs, kv_heads), kMomentThreads, 0, stream>>>(terms);
      };
      const bool few = terms.padded / kFewQueries * pairs * kv_heads < 4 * device_limits().multiprocessors;
      few ? form.template operator()<kFewQueries>() : form.template operator()<kManyQueries>();
      check_launch("moments of head outputs");
      const int shared = (terms.pairs.joint ? layer.group : 1) * Size * static_cast<int>(sizeof(float));
      dominants_kernel<T, Size><<<dim3(terms.padded, layer.group, kv_heads), kDominantThreads, shared, stream>>>(terms);
      check_launch("energies of dominant entries");
    }
  });
}

}  // namespace laprox::cuda
