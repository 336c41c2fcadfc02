// Energies of removal in half types: the tensor cores' sums against the float64 reference on the same numbers.

#include <doctest/doctest.h>

#include "backends/cuda/device.h"
#include "gpu/half_layers.h"
#include "laprox/cuda.h"

namespace laprox::testing {

namespace {

/// Relative to the largest energy. An energy has the square of a weight's error, which is kScore (see tolerances.h),
/// and sums of three terms that are some times as large as what they leave.
constexpr double kEnergy = 1e-4;

double difference(const Matrix& found, const Matrix& expected) {
  return (found - expected).cwiseAbs().maxCoeff() / (expected.maxCoeff() + 1e-300);
}

/// Calls check() with the kernels for sm_90a and with those for any device.
template <class Check>
void with_all_kernels(const Check& check) {
  for (bool sm90 : {true, false}) {
    CAPTURE(sm90);
    cuda::allow_sm90(sm90);
    check();
  }
  cuda::allow_sm90(true);
}

/// Joint ones and each head's, at one of the last queries and at more than a block of them.
void check_window(const HalfLayer& layer) {
  const auto both = backends();
  const auto expected = both[0]->scoring(layer.exact);
  for (Index window : {Index{1}, std::min<Index>(45, layer.exact.context_length)}) {
    for (bool joint : {true, false}) {
      for (OverQueries over : {OverQueries::sum, OverQueries::maximum}) {
        CAPTURE(window);
        CAPTURE(joint);
        const Matrix energies = expected->removal_energies(window, over, joint);
        with_all_kernels([&] {
          // A new one each time: kernels keep what they have computed.
          CHECK(difference(both[1]->scoring(layer.half)->removal_energies(window, over, joint), energies) <= kEnergy);
        });
      }
    }
  }
}

void check_energies(const LayerTensors& whole, ElementType type) {
  const auto both = backends();
  const Index context = whole.context_length;
  const HalfLayer layer = rounded(whole, 0, context, type);
  const auto expected = both[0]->scoring(layer.exact);
  check_window(layer);
  for (Index distance : {Index{0}, Index{1}, Index{20}}) {
    for (Index queries : {Index{0}, std::min<Index>(77, context)}) {
      CAPTURE(distance);
      CAPTURE(queries);
      const Matrix far = expected->far_energies(distance, queries);
      with_all_kernels(
          [&] { CHECK(difference(both[1]->scoring(layer.half)->far_energies(distance, queries), far) <= kEnergy); });
    }
  }
}

}  // namespace

TEST_CASE("energies of removal in half types are the reference's") {
  unsigned seed = 300;
  for (LayerShape shape : gpu_shapes()) {
    for (ElementType type : {ElementType::float16, ElementType::bfloat16}) {
      // Sharper attention has entries with nearly all of a query's weight, by some heads of a group or by all.
      for (double spread : {1.0, 6.0}) {
        if (shape.context > 1000 && spread > 1) continue;
        shape.spread = spread;
        CAPTURE(to_string(type));
        CAPTURE(shape.geometry.head_size);
        CAPTURE(shape.geometry.value_size);
        CAPTURE(shape.context);
        CAPTURE(spread);
        check_energies(random_layer(shape, ++seed), type);
      }
    }
  }
}

TEST_CASE("energies of removal in half types where a block takes its share of the tokens in many steps") {
  // A GPU has some blocks for each of 64 KV heads, and a block steps of 192 tokens.
  const LayerShape shape = {.geometry = {128, 64, 64, 64, 16}, .context = 1700, .attention = {.scale = 0.1}};
  check_window(rounded(random_layer(shape, 77), 1600, 1700, ElementType::bfloat16));
}

TEST_CASE("energies of removal in half types where values are nearly the same, or logits huge, or values tiny") {
  for (ElementType type : {ElementType::float16, ElementType::bfloat16}) {
    CAPTURE(to_string(type));
    LayerTensors equal = random_layer({.geometry = {4, 2, 40, 40, 64}, .context = 200}, 401);
    for (Index i = 0; i < equal.v.size(); ++i) equal.v.data<double>()[i] = 3 + 0.05 * equal.v.data<double>()[i];
    check_energies(equal, type);
    LayerTensors steep = random_layer({.geometry = {4, 2, 40, 40, 64}, .context = 200, .spread = 300}, 402);
    check_energies(steep, type);
    LayerTensors tiny = random_layer({.geometry = {4, 2, 40, 40, 64}, .context = 200}, 403);
    for (Index i = 0; i < tiny.v.size(); ++i) tiny.v.data<double>()[i] *= 1e-3;
    check_energies(tiny, type);
  }
}

TEST_CASE("energies of removal have the same bits in a second run") {
  const auto backend = make_cuda_backend(0, 2);
  const LayerShape shape = {.geometry = {8, 2, 64, 64, 128}, .context = 700, .attention = {.scale = 0.125}};
  const HalfLayer layer = rounded(random_layer(shape, 5), 0, shape.context, ElementType::bfloat16);
  const auto a = backend->scoring(layer.half), b = backend->scoring(layer.half);
  CHECK(a->removal_energies(32, OverQueries::sum, true) == b->removal_energies(32, OverQueries::sum, true));
  CHECK(a->far_energies(16) == b->far_energies(16));
}

}  // namespace laprox::testing
