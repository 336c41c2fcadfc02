// Every primitive of the CUDA backend against the float64 reference, in every element type.

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "backends/cuda/device.h"
#include "gpu/half_layers.h"
#include "laprox/cuda.h"
#include "support/tolerances.h"

namespace laprox::testing {

namespace {

constexpr ElementType kHalfTypes[] = {ElementType::float16, ElementType::bfloat16};

/// The largest difference, relative to the largest expected element.
double difference(const Matrix& found, const Matrix& expected) {
  REQUIRE(found.rows() == expected.rows());
  REQUIRE(found.cols() == expected.cols());
  const double largest = expected.size() > 0 ? expected.cwiseAbs().maxCoeff() : 0;
  return largest > 0 ? (found - expected).cwiseAbs().maxCoeff() / largest : (found - expected).cwiseAbs().sum();
}

std::map<Index, HeadAttention> heads_of(ScoringKernels& kernels, Index window) {
  std::map<Index, HeadAttention> heads;
  std::mutex mutex;
  kernels.visit_heads(window, [&](Index head, const HeadAttention& attention) {
    const std::lock_guard lock(mutex);
    heads.emplace(head, attention);
  });
  return heads;
}

void check_attention(ScoringKernels& found, ScoringKernels& expected, double tolerance) {
  for (Index window : {Index{1}, Index{7}, Index{32}, Index{45}}) {
    CAPTURE(window);
    CHECK(difference(found.window_statistics(window).sum, expected.window_statistics(window).sum) <= tolerance);
    CHECK(difference(found.window_statistics(window).squares, expected.window_statistics(window).squares) <= tolerance);
  }
  CHECK(difference(found.window_products(40), expected.window_products(40)) <= tolerance);
  CHECK(difference(found.column_sums(), expected.column_sums()) <= tolerance);
  const auto found_heads = heads_of(found, 9), expected_heads = heads_of(expected, 9);
  REQUIRE(found_heads.size() == expected_heads.size());
  for (const auto& [head, attention] : expected_heads) {
    CAPTURE(head);
    CHECK(difference(found_heads.at(head).weights, attention.weights) <= tolerance);
    CHECK(difference(found_heads.at(head).logits, attention.logits) <= tolerance);
    CHECK(difference(found_heads.at(head).outputs, attention.outputs) <= tolerance);
  }
}

void check_values(ScoringKernels& found, ScoringKernels& expected, double tolerance) {
  CHECK(difference(found.value_norms(), expected.value_norms()) <= tolerance);
  CHECK(difference(found.value_products(), expected.value_products()) <= tolerance);
  CHECK(difference(found.value_l1_norms(), expected.value_l1_norms()) <= kScore);
}

/// Every primitive of the table, whichever backend or type the two layers are in.
void check_table(const LayerTensors& found_layer, ScoringKernels& found, const LayerTensors& expected_layer,
                 ScoringKernels& expected) {
  for (const Primitive& primitive : primitives(std::min<Index>(9, found_layer.context_length))) {
    CAPTURE(primitive.name);
    CHECK(difference(primitive.compute(LayerView(found_layer), found),
                     primitive.compute(LayerView(expected_layer), expected)) <= kScore);
  }
}

/// While it lives, kernels for sm_90a are used where they run, or never.
class Sm90Allowed {
 public:
  explicit Sm90Allowed(bool allowed) { cuda::allow_sm90(allowed); }
  ~Sm90Allowed() { cuda::allow_sm90(true); }
};

}  // namespace

TEST_CASE("primitives in float32 are the reference's") {
  const auto both = backends();
  unsigned seed = 40;
  for (const LayerShape& shape : gpu_shapes()) {
    CAPTURE(shape.geometry.query_heads);
    CAPTURE(shape.context);
    const LayerTensors whole = random_layer(shape, ++seed);
    const LayerTensors exact = with_queries(whole, 0, shape.context, ElementType::float64);
    const LayerTensors single = with_queries(whole, 0, shape.context, ElementType::float32);
    const auto expected = both[0]->scoring(exact), found = both[1]->scoring(single);
    check_attention(*found, *expected, kScore);
    check_values(*found, *expected, kScore);
    check_table(single, *found, exact, *expected);
  }
}

TEST_CASE("primitives in half types are the reference's of the same numbers") {
  const auto both = backends();
  unsigned seed = 60;
  for (const LayerShape& shape : gpu_shapes()) {
    for (ElementType type : kHalfTypes) {
      CAPTURE(to_string(type));
      CAPTURE(shape.geometry.query_heads);
      CAPTURE(shape.context);
      const HalfLayer layer = rounded(random_layer(shape, ++seed), 0, shape.context, type);
      const auto expected = both[0]->scoring(layer.exact);
      for (bool sm90 : {true, false}) {
        CAPTURE(sm90);
        const Sm90Allowed allowed(sm90);
        const auto found = both[1]->scoring(layer.half);
        check_attention(*found, *expected, kScore);
        check_values(*found, *expected, kScore);
        check_table(layer.half, *found, layer.exact, *expected);
      }
    }
  }
}

/// Moves all logits by about `by`: the factors are powers of two, which every element type holds.
void shift_logits(LayerTensors& layer, double by) {
  const Index size = layer.geometry.head_size;
  const double query = std::exp2(std::round(std::log2(std::abs(by) / layer.attention.scale))) / 1024;
  for (Index i = 0; i < layer.k.size(); i += size) layer.k.data<double>()[i] = 1024;
  for (Index i = 0; i < layer.q.size(); i += size) layer.q.data<double>()[i] = by < 0 ? -query : query;
}

TEST_CASE("weights of huge logits sum to one") {
  const auto both = backends();
  for (ElementType type : {ElementType::float16, ElementType::bfloat16, ElementType::float32}) {
    for (double by : {262144.0, -262144.0}) {
      for (bool sm90 : {true, false}) {
        CAPTURE(to_string(type));
        CAPTURE(by);
        CAPTURE(sm90);
        const Sm90Allowed allowed(sm90);
        LayerTensors whole =
            random_layer({.geometry = {4, 2, 16, 16, 32}, .context = 700, .attention = {.scale = 0.25}}, 91);
        shift_logits(whole, by);
        const HalfLayer layer = rounded(whole, 0, 700, type);
        const auto found = both[1]->scoring(layer.half);
        for (Index window : {Index{32}, Index{700}}) {
          const Matrix sums = window == 32 ? found->window_statistics(32).sum : found->column_sums();
          CAPTURE(window);
          for (Index head = 0; head < 4; ++head) {
            CAPTURE(head);
            CHECK(sums.row(head).sum() == doctest::Approx(window).epsilon(0.01));
          }
        }
      }
    }
  }
}

TEST_CASE("value norms keep their accuracy where values and projections leave float16's range") {
  const auto both = backends();
  for (double factor : {1e-12, 1e9}) {
    CAPTURE(factor);
    LayerTensors whole = random_layer({.geometry = {4, 2, 16, 80, 64}, .context = 70}, 77);
    for (Index i = 0; i < whole.v.size(); ++i) whole.v.data<double>()[i] *= factor;
    for (Index i = 0; i < whole.w_o.size(); ++i) whole.w_o.data<double>()[i] /= factor;
    const HalfLayer layer = rounded(whole, 0, 70, ElementType::bfloat16);
    CHECK(difference(both[1]->scoring(layer.half)->value_norms(), both[0]->scoring(layer.exact)->value_norms()) <=
          kScore);
  }
}

TEST_CASE("value norms and window statistics where a block takes many tiles of keys") {
  const auto both = backends();
  for (bool sm90 : {true, false}) {
    const Sm90Allowed allowed(sm90);
    for (Index kv_heads : {1, 52}) {
      CAPTURE(sm90);
      CAPTURE(kv_heads);
      const Index context = kv_heads == 1 ? 40000 : 1237;
      const LayerTensors whole =
          random_layer({.geometry = {2 * kv_heads, kv_heads, 64, 64, 32}, .context = context}, 81);
      const HalfLayer layer = rounded(whole, context - 8, context, ElementType::bfloat16);
      const auto expected = both[0]->scoring(layer.exact), found = both[1]->scoring(layer.half);
      CHECK(difference(found->value_norms(), expected->value_norms()) <= kScore);
      CHECK(difference(found->window_statistics(8).squares, expected->window_statistics(8).squares) <= kScore);
      CHECK(difference(found->window_statistics(8).sum, expected->window_statistics(8).sum) <= kScore);
    }
  }
}

TEST_CASE("a second run gives the same bits") {
  const auto backend = make_cuda_backend(0, 2);
  const LayerShape shape = gpu_shapes().at(15);
  const HalfLayer layer = rounded(random_layer(shape, 5), 0, shape.context, ElementType::bfloat16);
  const auto a = backend->scoring(layer.half), b = backend->scoring(layer.half);
  CHECK(a->column_sums() == b->column_sums());
  CHECK(a->window_statistics(32).squares == b->window_statistics(32).squares);
  CHECK(a->value_norms() == b->value_norms());
}

}  // namespace laprox::testing
