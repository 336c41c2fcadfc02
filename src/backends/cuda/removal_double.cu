#include <algorithm>

#include "backends/cuda/dispatch.cuh"
#include "backends/cuda/removal.h"
#include "backends/cuda/removal_double.cuh"
#include "backends/cuda/rows.cuh"

namespace laprox::cuda {

namespace {

// With c = a / (1 - a) and M_ab = W^a (W^b)^T, the energy of an entry at a query is
// sum_ab c_a c_b (v M_ab v - 2 v M_ab o_b + o_a M_ab o_b). From the logits on everything is float64, in which that sum
// may cancel by eight digits and still has eight; where one weight is nearly everything, c is large and o - v small,
// and the sum is formed from the differences.

constexpr double kLargestWeight = 1 - 1e-6;
/// Odds from which on the differences o - v are formed. Values that are equal to three digits cost six in the sum, and
/// odds of 30 three more; at odds of 1000 it was six more, too many.
constexpr double kSteep = 30;
constexpr int kRowsPerBlock = 8, kTokenThreads = 64;
constexpr int kEnergyThreads = 128;
/// Numbers that one scratch array of a block of tokens or queries may have, as a rule.
constexpr long long kScratch = 1 << 22;
constexpr int kMostTokens = 2048, kMostQueries = 256;
/// Shares of the keys whose weighted values are summed side by side.
constexpr int kSplits = 16;

/// Softmax of each row of a table of logits [T, rows], its sink included; 0 in padding rows. Also the entry that
/// dominates each row, where there is one, and the sum of the other weights. Block per kRowsPerBlock rows.
__global__ void weights_kernel(Group g, const float* logits, double* weights, int* dominants, double* remainders) {
  const int row = static_cast<int>(blockIdx.x) * kRowsPerBlock + static_cast<int>(threadIdx.x);
  const int lane = static_cast<int>(threadIdx.y), tokens = g.tokens;
  const int row_block = row / g.resident, query = row_block / g.layer.group * g.resident + row % g.resident;
  const bool real = row < g.rows && query < g.range.count;
  const int head = g.kv_head * g.layer.group + row_block % g.layer.group;
  const double sink = real && g.layer.sinks ? g.layer.sinks[head] : -INFINITY;
  __shared__ double shared[kTokenThreads][kRowsPerBlock];

  double largest = sink;
  for (int i = lane; real && i < tokens; i += kTokenThreads) {
    largest = fmax(largest, static_cast<double>(logits[static_cast<size_t>(i) * g.rows + row]));
  }
  shared[lane][threadIdx.x] = largest;
  __syncthreads();
  for (int other = 0; other < kTokenThreads; ++other) largest = fmax(largest, shared[other][threadIdx.x]);
  __syncthreads();
  double total = 0;
  for (int i = lane; real && i < tokens; i += kTokenThreads) {
    total += exp(logits[static_cast<size_t>(i) * g.rows + row] - largest);
  }
  shared[lane][threadIdx.x] = total;
  __syncthreads();
  total = real ? exp(sink - largest) : 0;
  for (int other = 0; other < kTokenThreads; ++other) total += shared[other][threadIdx.x];
  double remainder = 0;
  for (int i = lane; row < g.rows && i < tokens; i += kTokenThreads) {
    const size_t at = static_cast<size_t>(i) * g.rows + row;
    const double weight = real ? exp(logits[at] - largest) / total : 0;
    weights[at] = weight;
    if (weight > kDominantWeight) {
      dominants[row] = i;
    } else {
      remainder += weight;
    }
  }
  __syncthreads();
  shared[lane][threadIdx.x] = remainder;
  __syncthreads();
  if (lane != 0 || row >= g.rows) return;
  remainder = real ? exp(sink - largest) / total : 0;
  for (int other = 0; other < kTokenThreads; ++other) remainder += shared[other][threadIdx.x];
  remainders[row] = remainder;
}

/// Sums kSplits parts of `size` numbers in their order.
__global__ void sum_parts_kernel(size_t size, const double* parts, double* sums) {
  const size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= size) return;
  double sum = 0;
  for (int part = 0; part < kSplits; ++part) sum += parts[part * size + at];
  sums[at] = sum;
}

/// Head outputs: the rests, and each row's dominant entry. Thread per row and component.
template <class T>
__global__ void outputs_kernel(Group g, Values<T> values, const double* rests, const double* weights,
                               const int* dominants, double* outputs) {
  const int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), size = g.layer.value_size;
  if (at >= g.rows * size) return;
  const int row = at / size, token = dominants[row];
  outputs[at] = rests[at];
  if (token >= 0) outputs[at] += weights[static_cast<size_t>(token) * g.rows + row] * values(token, at % size);
}

/// Block (query, pair): M_ab o_b, and o_a M_ab o_b.
__global__ void moments_kernel(Group g, const double* grams, const double* outputs, double* moments, double* squares) {
  const int query = static_cast<int>(blockIdx.x), pair = static_cast<int>(blockIdx.y), size = g.layer.value_size;
  const double* gram = grams + static_cast<size_t>(pair) * size * size;
  const double* of_a = outputs + static_cast<size_t>(g.row(g.pairs.first(pair), query)) * size;
  const double* of_b = outputs + static_cast<size_t>(g.row(g.pairs.second(pair), query)) * size;
  const size_t at = static_cast<size_t>(pair) * g.range.count + query;
  __shared__ double shared[kEnergyThreads];
  double square = 0;
  for (int c = static_cast<int>(threadIdx.x); c < size; c += kEnergyThreads) {
    double sum = 0;
    for (int k = 0; k < size; ++k) sum += gram[c * size + k] * of_b[k];
    moments[at * size + c] = sum;
    square += of_a[c] * sum;
  }
  shared[threadIdx.x] = square;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double sum = 0;
  for (double each : shared) sum += each;
  squares[at] = sum;
}

/// One thread per token and pair: (v M_ab) v.
template <class T>
__global__ void forms_kernel(Group g, int first, int count, Values<T> values, const double* projected, double* forms) {
  const int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), pairs = g.pairs.count(),
            size = g.layer.value_size;
  if (at >= count * pairs) return;
  double sum = 0;
  for (int c = 0; c < size; ++c) sum += projected[static_cast<size_t>(at) * size + c] * values(first + at / pairs, c);
  forms[static_cast<size_t>(first) * pairs + at] = sum;
}

/// The arrays that an energy is formed from, for the tokens [first, ..).
template <class T>
struct Terms {
  int first;
  Values<T> values;
  const double *weights, *outputs, *grams, *forms, *squares, *linear, *rests, *remainders;
  const int* dominants;
};

__device__ inline double odds_of(double weight) {
  const double a = fmin(weight, kLargestWeight);
  return a / (1 - a);
}

/// c (o - v) of one row, as factor * (first - share v). Of a dominant entry, c is a / R with the sum R of the other
/// weights, and c (o - v) is c (N - R v) with the values weighted by these: so nothing cancels.
struct Change {
  double factor, share;
  const double* first;
};
template <class T>
__device__ inline Change change_of(const Group& g, const Terms<T>& terms, int token, int row) {
  const double weight = terms.weights[static_cast<size_t>(token) * g.rows + row];
  const size_t at = static_cast<size_t>(row) * g.layer.value_size;
  if (terms.dominants[row] != token) return {odds_of(weight), 1, terms.outputs + at};
  constexpr double kMost = kLargestWeight / (1 - kLargestWeight);
  const double remainder = terms.remainders[row];
  return {remainder > 0 ? fmin(weight / remainder, kMost) : kMost, remainder, terms.rests + at};
}

/// sum_ab c_a c_b (o_a - v) M_ab (o_b - v).
template <class T>
__device__ double steep_energy(const Group& g, const Terms<T>& terms, int token, int query) {
  const int size = g.layer.value_size;
  double energy = 0;
  for (int pair = 0; pair < g.pairs.count(); ++pair) {
    const Change a = change_of(g, terms, token, g.row(g.pairs.first(pair), query));
    const Change b = change_of(g, terms, token, g.row(g.pairs.second(pair), query));
    const double factor = a.factor * b.factor;
    if (factor == 0) continue;
    const double* gram = terms.grams + static_cast<size_t>(pair) * size * size;
    double form = 0;
    for (int c = 0; c < size; ++c) {
      double sum = 0;
      for (int k = 0; k < size; ++k) sum += gram[c * size + k] * (b.first[k] - b.share * terms.values(token, k));
      form += sum * (a.first[c] - a.share * terms.values(token, c));
    }
    energy += factor * form;
  }
  return energy;
}

template <class T>
__device__ double energy_of(const Group& g, const Terms<T>& terms, int token, int query) {
  const int pairs = g.pairs.count(), at = token - terms.first;
  const double* weights = terms.weights + static_cast<size_t>(token) * g.rows;
  double energy = 0, steepest = 0;
  for (int pair = 0; pair < pairs; ++pair) {
    const double of_a = odds_of(weights[g.row(g.pairs.first(pair), query)]);
    const double of_b = odds_of(weights[g.row(g.pairs.second(pair), query)]);
    const double form = terms.forms[static_cast<size_t>(token) * pairs + pair];
    const double linear = terms.linear[(static_cast<size_t>(at) * pairs + pair) * g.range.count + query];
    energy += of_a * of_b * (form + terms.squares[pair * g.range.count + query] - 2 * linear);
    steepest = fmax(steepest, of_a);
  }
  return fmax(steepest > kSteep ? steep_energy(g, terms, token, query) : energy, 0.0);
}

/// Block per token: the sum or the maximum over those queries that are `distance` or more behind it. The sum is added
/// to what stands there.
template <class T>
__global__ void energies_kernel(Group g, Terms<T> terms, int distance, bool maximum, double* energies) {
  const int token = terms.first + static_cast<int>(blockIdx.x);
  __shared__ double shared[kEnergyThreads];
  double result = 0;
  for (int query = static_cast<int>(threadIdx.x); query < g.range.count; query += kEnergyThreads) {
    if (g.layer.positions[g.range.first + query] < token + distance) continue;
    const double energy = energy_of(g, terms, token, query);
    result = maximum ? fmax(result, energy) : result + energy;
  }
  shared[threadIdx.x] = result;
  for (int half = kEnergyThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= half) continue;
    const double other = shared[threadIdx.x + half];
    shared[threadIdx.x] = maximum ? fmax(shared[threadIdx.x], other) : shared[threadIdx.x] + other;
  }
  if (threadIdx.x == 0) energies[token] = maximum ? shared[0] : energies[token] + shared[0];
}

template <class T>
void form_grams(const Group& g, DoubleScratch& scratch, cudaStream_t stream) {
  const Layer& layer = g.layer;
  const int pairs = g.pairs.count(), size = layer.value_size;
  const Blocks<T> left{
      static_cast<const T*>(layer.w_o), layer.model_stride, size, g.kv_head * layer.group, g.pairs, false};
  Blocks<T> right = left;
  right.second = true;
  double_product(pairs, size, size, layer.model_size, LeftBlocks<T>{left}, RightBlocks<T>{right},
                 scratch.grams.at_least(static_cast<size_t>(pairs) * size * size), stream);
}

/// Weights, outputs and moments of the range's queries.
template <class T>
void form_queries(const Group& g, LogitSums sums, DoubleScratch& scratch, cudaStream_t stream) {
  const Layer& layer = g.layer;
  const int pairs = g.pairs.count(), size = layer.value_size, rows = g.rows;
  const size_t table = static_cast<size_t>(layer.tokens) * rows, outputs = static_cast<size_t>(rows) * size;
  logit_table(layer, g.range, g.kv_head, scratch.logits.at_least(table), stream, sums);
  check(cudaMemsetAsync(scratch.dominants.at_least(rows), 0xff, rows * sizeof(int), stream), "clearing device memory");
  weights_kernel<<<(rows + kRowsPerBlock - 1) / kRowsPerBlock, dim3(kRowsPerBlock, kTokenThreads), 0, stream>>>(
      g, scratch.logits.data(), scratch.weights.at_least(table), scratch.dominants.data(),
      scratch.remainders.at_least(rows));
  check_launch("attention weights in float64");
  const int share = (g.tokens + kSplits - 1) / kSplits;
  double_product(kSplits, rows, size, share, TokenWeights{scratch.weights.data(), rows, share, g.tokens},
                 ShareValues<T>{values_of<T>(layer, g.kv_head), share, g.tokens},
                 scratch.parts.at_least(kSplits * outputs), stream);
  sum_parts_kernel<<<static_cast<unsigned>((outputs + 255) / 256), 256, 0, stream>>>(outputs, scratch.parts.data(),
                                                                                     scratch.rests.at_least(outputs));
  outputs_kernel<<<static_cast<unsigned>((outputs + 255) / 256), 256, 0, stream>>>(
      g, values_of<T>(layer, g.kv_head), scratch.rests.data(), scratch.weights.data(), scratch.dominants.data(),
      scratch.outputs.at_least(outputs));
  check_launch("head outputs in float64");
  const size_t cells = static_cast<size_t>(pairs) * g.range.count;
  moments_kernel<<<dim3(g.range.count, pairs), kEnergyThreads, 0, stream>>>(
      g, scratch.grams.data(), scratch.outputs.data(), scratch.moments.at_least(cells * size),
      scratch.squares.at_least(cells));
  check_launch("moments of head outputs");
}

/// How many tokens are taken at a time, with `each` numbers of each in one scratch array.
int tokens_at_once(long long each) { return static_cast<int>(std::clamp<long long>(kScratch / each, 32, kMostTokens)); }

/// The forms [C, pairs] of the values of g's KV head, which no query changes.
template <class T>
void form_values(const Group& g, DoubleScratch& scratch, cudaStream_t stream) {
  const int pairs = g.pairs.count(), size = g.layer.value_size, context = g.layer.context;
  const int most = tokens_at_once(static_cast<long long>(pairs) * size);
  const Values<T> values = values_of<T>(g.layer, g.kv_head);
  double* forms = scratch.forms.at_least(static_cast<size_t>(context) * pairs);
  for (int first = 0; first < context; first += most) {
    const int count = std::min(most, context - first);
    double_product(1, count, pairs * size, size, BlockValues<T>{values, first},
                   StackedGrams{scratch.grams.data(), size},
                   scratch.projected.at_least(static_cast<size_t>(most) * pairs * size), stream);
    forms_kernel<<<(count * pairs + 127) / 128, 128, 0, stream>>>(g, first, count, values, scratch.projected.data(),
                                                                  forms);
    check_launch("forms of values in float64");
  }
}

/// The energies [C] of the entries of g's KV head that lie `distance` or more before one of the range's queries, block
/// by block of tokens.
template <class T>
void form_energies(const Group& g, int distance, bool maximum, DoubleScratch& scratch, double* energies,
                   cudaStream_t stream) {
  const int pairs = g.pairs.count(), size = g.layer.value_size, columns = pairs * g.range.count;
  const int most = tokens_at_once(columns), end = std::min(g.layer.context, g.tokens - distance);
  const Values<T> values = values_of<T>(g.layer, g.kv_head);
  for (int first = 0; first < end; first += most) {
    const int count = std::min(most, end - first);
    double_product(1, count, columns, size, BlockValues<T>{values, first}, MomentColumns{scratch.moments.data(), size},
                   scratch.linear.at_least(static_cast<size_t>(most) * columns), stream);
    const Terms<T> terms{first,
                         values,
                         scratch.weights.data(),
                         scratch.outputs.data(),
                         scratch.grams.data(),
                         scratch.forms.data(),
                         scratch.squares.data(),
                         scratch.linear.data(),
                         scratch.rests.data(),
                         scratch.remainders.data(),
                         scratch.dominants.data()};
    energies_kernel<<<count, kEnergyThreads, 0, stream>>>(g, terms, distance, maximum, energies);
    check_launch("energies of removal");
  }
}

Group group_of(const Layer& layer, QueryRange range, int kv_head, int tokens, bool joint) {
  const RowLayout rows(layer, range);
  return {layer, range, kv_head, rows.resident, rows.rows(), tokens, {layer.group, joint}};
}

void clear(const Layer& layer, double* energies, cudaStream_t stream) {
  const size_t size = static_cast<size_t>(layer.kv_heads) * layer.context;
  check(cudaMemsetAsync(energies, 0, size * sizeof(double), stream), "clearing device memory");
}

}  // namespace

void removal_energies_double(const Layer& layer, QueryRange range, bool maximum, bool joint, double* energies,
                             DoubleScratch& scratch, cudaStream_t stream) {
  clear(layer, energies, stream);
  for_element(layer.element, [&]<class T>() {
    for (int kv_head = 0; kv_head < layer.kv_heads; ++kv_head) {
      const Group g = group_of(layer, range, kv_head, layer.tokens, joint);
      form_grams<T>(g, scratch, stream);
      form_values<T>(g, scratch, stream);
      form_queries<T>(g, LogitSums::exact, scratch, stream);
      form_energies<T>(g, 0, maximum, scratch, energies + static_cast<size_t>(kv_head) * layer.context, stream);
    }
  });
  check(cudaStreamSynchronize(stream), "waiting for the device");
}

void far_energies_double(const Layer& layer, int distance, int queries, LogitSums sums, double* energies,
                         DoubleScratch& scratch, cudaStream_t stream) {
  clear(layer, energies, stream);
  const long long fitting = 2 * kScratch / (static_cast<long long>(layer.tokens) * layer.group);
  const int at_once = static_cast<int>(std::clamp<long long>(fitting, 32, kMostQueries));
  const int begin = layer.queries - queries, unstored = layer.context - layer.queries;
  for_element(layer.element, [&]<class T>() {
    for (int kv_head = 0; kv_head < layer.kv_heads; ++kv_head) {
      for (int first = begin; first < layer.queries; first += at_once) {
        const QueryRange range{first, std::min(at_once, layer.queries - first)};
        const Group g = group_of(layer, range, kv_head, unstored + range.first + range.count, false);
        if (first == begin) {
          form_grams<T>(g, scratch, stream);
          form_values<T>(g, scratch, stream);
        }
        form_queries<T>(g, sums, scratch, stream);
        form_energies<T>(g, distance, false, scratch, energies + static_cast<size_t>(kv_head) * layer.context, stream);
      }
    }
  });
  check(cudaStreamSynchronize(stream), "waiting for the device");
}

}  // namespace laprox::cuda
