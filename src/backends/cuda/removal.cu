#include <algorithm>
#include <vector>

#include "backends/cuda/half_removal.h"
#include "backends/cuda/removal.h"

namespace laprox::cuda {

namespace {

/// The largest magnitude of a row's largest logit, times log2(e), for which tensor cores form weights: they cut sums
/// off at 2^-23 of the logit, 1e-5 of a weight at such a logit. Some models' dumps have logits of 2.5e5.
constexpr float kLargestLogit = 256;
/// The least share of the values' mean square that must be variance. Where values are all nearly the same, the three
/// terms of an energy cancel, and float32 has too few digits for that.
constexpr float kLeastVariance = 0.1F;
/// Bytes that the rests and moments of the KV heads that are worked on at once may take, as a rule.
constexpr long long kBatchBytes = 1LL << 30;

/// Thread per row: raises `largest`, which begins at 0, to the magnitude of its maximum.
__global__ void largest_logit_kernel(const RowSoftmax* softmax, int rows, unsigned* largest) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  // Bit patterns of magnitudes are ordered as the magnitudes, what is not a number last.
  unsigned bits = row < rows ? __float_as_uint(fabsf(softmax[row].maximum)) : 0;
  bits = __reduce_max_sync(~0U, bits);
  if (threadIdx.x % 32 == 0) atomicMax(largest, bits);
}

void find_largest_logit(const HalfTerms& terms, cudaStream_t stream) {
  const int rows = terms.layer.kv_heads * terms.rows;
  float* largest = terms.fitness + terms.layer.kv_heads;
  check(cudaMemsetAsync(largest, 0, sizeof(float), stream), "clearing device memory");
  largest_logit_kernel<<<(rows + 255) / 256, 256, 0, stream>>>(terms.softmax, rows,
                                                               reinterpret_cast<unsigned*>(largest));
  check_launch("the largest logit");
}

/// The KV heads [first, first + count) as a layer of their own.
Layer some_heads(const Layer& layer, int first, int count) {
  Layer part = layer;
  part.kv_heads = count;
  part.query_heads = count * layer.group;
  const auto skip = [&](const void* rows, long long each) {
    const long long bytes = layer.element == Element::float32 ? 4 : 2;
    return static_cast<const void*>(static_cast<const std::byte*>(rows) + first * each * bytes);
  };
  const long long tokens = layer.tokens, group = layer.group;
  part.q = skip(layer.q, group * layer.queries * layer.head_stride);
  part.k = skip(layer.k, tokens * layer.head_stride);
  part.v = skip(layer.v, tokens * layer.value_stride);
  part.w_o = skip(layer.w_o, group * layer.value_size * layer.model_stride);
  if (layer.sinks) part.sinks = layer.sinks + first * group;
  return part;
}

/// The forms v W^a (W^b)^T v of all pairs, and the Gram matrices that half_moments reads, on scratch.side: they need
/// the values and W_o alone.
void form_values(HalfTerms& terms, HalfScratch& scratch) {
  const UsePool pool(scratch.side);
  const Layer& layer = terms.layer;
  const int per_kv_head = terms.pairs.count();
  std::vector<FormPair> pairs;
  for (int kv_head = 0; kv_head < layer.kv_heads; ++kv_head) {
    for (int pair = 0; pair < per_kv_head; ++pair) {
      const FormPair heads = terms.pairs[pair];
      pairs.push_back({kv_head * layer.group + heads.a, kv_head * layer.group + heads.b});
    }
  }
  FormPair* on_device = scratch.pairs.at_least(pairs.size());
  upload(on_device, pairs.data(), pairs.size(), scratch.side);
  pack_forms(layer, on_device, static_cast<int>(pairs.size()), scratch.packed, scratch.side);
  scratch.grams_formed.record(scratch.side);
  float* forms = scratch.forms.at_least(pairs.size() * static_cast<size_t>(layer.context));
  value_forms(layer, scratch.packed, per_kv_head, false, forms, scratch.side);
  scratch.values_formed.record(scratch.side);
  terms.forms = forms;
}

/// Everything that energies at the queries of `range` are formed from, on the tensor cores.
void form_terms(HalfTerms& terms, HalfScratch& scratch, cudaStream_t stream) {
  const Layer& layer = terms.layer;
  const RowLayout layout(layer, terms.range);
  terms.rows = layout.rows();
  terms.padded = terms.rows / layer.group;
  scratch.begun.record(stream);
  scratch.begun.hold(scratch.side);
  form_values(terms, scratch);
  row_softmax(layer, terms.range, scratch.partial, scratch.softmax, stream);
  terms.softmax = scratch.softmax.data();
  terms.fitness = scratch.fitness.at_least(static_cast<size_t>(layer.kv_heads) + 1);
  find_largest_logit(terms, stream);
  half_values(terms, scratch, stream);
  half_outputs(terms, scratch, stream);
  scratch.grams_formed.hold(stream);
  half_moments(terms, scratch, stream);
  scratch.values_formed.hold(stream);
}

/// Whether float32 has digits enough for the energies that were formed of these terms. Waits for the device.
bool float32_suffices(const HalfTerms& terms, cudaStream_t stream) {
  std::vector<float> fitness(static_cast<size_t>(terms.layer.kv_heads) + 1);
  download(fitness.data(), terms.fitness, fitness.size(), stream);
  const float logit = fitness.back();
  fitness.pop_back();
  return !(*std::min_element(fitness.begin(), fitness.end()) < kLeastVariance) && logit <= kLargestLogit;
}

/// Whether there are kernels for the layer on the tensor cores.
bool has_half_kernels(const Layer& layer) {
  return layer.element != Element::float32 && layer.head_stride == layer.value_stride &&
         layer.head_stride <= kMostHalfSize && layer.group <= kMostGroup;
}

bool removal_energies_half(const Layer& layer, QueryRange range, bool maximum, bool joint, double* energies,
                           HalfScratch& scratch, cudaStream_t stream) {
  // Some devices have too little for large groups.
  if (window_shared_bytes(layer) > device_limits().shared_bytes_per_block) return false;
  HalfTerms terms{.layer = layer, .range = range, .pairs = {layer.group, joint}};
  form_terms(terms, scratch, stream);
  window_energies(terms, maximum, energies, stream);
  return float32_suffices(terms, stream);
}

/// Some KV heads at a time, so that what all queries have to be kept for fits.
bool far_energies_half(const Layer& layer, int distance, int queries, double* energies, HalfScratch& scratch,
                       cudaStream_t stream) {
  const long long each = 8LL * layer.group * queries * layer.value_stride;
  const int at_once = static_cast<int>(std::clamp<long long>(kBatchBytes / each, 1, layer.kv_heads));
  double* by_head = scratch.by_head.at_least(static_cast<size_t>(at_once) * layer.group * layer.context);
  for (int first = 0; first < layer.kv_heads; first += at_once) {
    HalfTerms terms{.layer = some_heads(layer, first, std::min(at_once, layer.kv_heads - first)),
                    .range = {layer.queries - queries, queries},
                    .pairs = {layer.group, false}};
    form_terms(terms, scratch, stream);
    far_head_energies(terms, distance, by_head, energies + static_cast<size_t>(first) * layer.context, stream);
    if (!float32_suffices(terms, stream)) return false;
  }
  return true;
}

}  // namespace

void removal_energies(const Layer& layer, QueryRange range, bool maximum, bool joint, double* energies,
                      RemovalScratch& scratch, cudaStream_t stream) {
  if (has_half_kernels(layer) && removal_energies_half(layer, range, maximum, joint, energies, scratch.half, stream)) {
    return;
  }
  removal_energies_double(layer, range, maximum, joint, energies, scratch.in_double, stream);
}

void far_energies(const Layer& layer, int distance, int queries, double* energies, RemovalScratch& scratch,
                  cudaStream_t stream) {
  if (has_half_kernels(layer) && far_energies_half(layer, distance, queries, energies, scratch.half, stream)) return;
  // Half types of other sizes are not known to need exact logits, which take most of the time.
  const bool fast = layer.element != Element::float32 && !has_half_kernels(layer);
  far_energies_double(layer, distance, queries, fast ? LogitSums::fast : LogitSums::exact, energies, scratch.in_double,
                      stream);
}

}  // namespace laprox::cuda
