// The verifier's arithmetic on numbers worked by hand.

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "support/layers.h"
#include "verify/assess.h"
#include "verify/plain.h"

namespace laprox::verify {

namespace {

double rounded(double value, ElementType type) {
  Precision(type).round(&value, 1);
  return value;
}

Matrix row_of(std::initializer_list<double> values) {
  Matrix row(1, static_cast<Index>(values.size()));
  std::copy(values.begin(), values.end(), row.data());
  return row;
}

ValueCheck judged(const Matrix& found, const Matrix& expected, const std::vector<const Matrix*>& plain,
                  ElementType type = ElementType::bfloat16) {
  ValueCheck check = make_value_check("x", "", "head", "token", Precision(type));
  assess_values({.found = found, .expected = expected, .plain = plain}, Precision(type), 0, check);
  return check;
}

}  // namespace

TEST_CASE("numbers round to the nearest of a type, ties to even, and beyond its range to infinity") {
  CHECK(rounded(1 + 0x1p-8, ElementType::bfloat16) == 1);
  CHECK(rounded(1 + 0x1.8p-7, ElementType::bfloat16) == 1 + 0x1p-6);
  CHECK(rounded(2049, ElementType::float16) == 2048);
  CHECK(rounded(0x1p-25, ElementType::float16) == 0);
  CHECK(std::isinf(rounded(70000, ElementType::float16)));
  CHECK(rounded(70000, ElementType::bfloat16) == 70144);
  CHECK(rounded(1 + 0x1p-24, ElementType::float32) == 1);
  CHECK(rounded(1 + 0x1p-52, ElementType::float64) == 1 + 0x1p-52);
}

TEST_CASE("a unit in the last place is the spacing of the type's numbers") {
  CHECK(Precision(ElementType::bfloat16).ulp(1.5) == 0x1p-7);
  CHECK(Precision(ElementType::bfloat16).ulp(-2) == 0x1p-6);
  CHECK(Precision(ElementType::float16).ulp(1) == 0x1p-10);
  CHECK(Precision(ElementType::float16).ulp(1e-7) == 0x1p-24);
  CHECK(Precision(ElementType::float32).ulp(0) == 0x1p-149);
  CHECK(Precision(ElementType::float64).ulp(1) == 0x1p-52);
}

TEST_CASE("an element may have twice the plain error of elements of its size, and one ulp") {
  // The plain error at 8 is 0.25; it says nothing of elements of size 1, whose plain error is 0.
  const Matrix expected = row_of({8, 1, 1, 1}), plain = row_of({8.25, 1, 1, 1});
  const double allowed_at_8 = 0.5 + 0x1p-4 + 8e-5, allowed_at_1 = 0x1p-7 + 8e-5;
  CHECK(judged(row_of({8 + 0.99 * allowed_at_8, 1, 1, 1}), expected, {&plain}).parts[1].passed);
  CHECK(!judged(row_of({8 + 1.01 * allowed_at_8, 1, 1, 1}), expected, {&plain}).parts[1].passed);
  CHECK(judged(row_of({8, 1, 1 + 0.99 * allowed_at_1, 1}), expected, {&plain}).parts[1].passed);
  const ValueCheck wrong = judged(row_of({8, 1, 1 + 1.01 * allowed_at_1, 1}), expected, {&plain});
  CHECK(!wrong.parts[1].passed);
  CHECK(wrong.parts[1].column == 2);
  CHECK(wrong.worst.ulps == doctest::Approx(1.01 * allowed_at_1 / 0x1p-7));
}

TEST_CASE("a plain replayed that is off by more than a fifth, or not finite, is no yardstick") {
  const Matrix expected = row_of({1, 2, 3, 4}), wild = row_of({4, 3, 2, 1});
  const Matrix close = row_of({1, 2, 3, 4.1}), far = row_of({4, 3, 2, 1});
  for (const auto& plain : {std::vector<const Matrix*>{&wild}, std::vector<const Matrix*>{}}) {
    CHECK(judged(close, expected, plain).passed());
    const ValueCheck check = judged(far, expected, plain);
    CHECK(!check.passed());
    CHECK(check.parts[2].capped);
    CHECK(check.parts[2].allowed == doctest::Approx(0.2).epsilon(0.01));
  }
}

TEST_CASE("NaN and infinity are counted and named, and do not hide the other elements") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const Matrix expected = row_of({1, 2, 3, 4});
  const ValueCheck check = judged(row_of({1, nan, 3, -infinity}), expected, {&expected});
  CHECK(check.parts[0].measured == 2);
  CHECK(check.parts[0].column == 1);
  CHECK(!check.passed());
  CHECK(check.parts[1].passed);
  CHECK(!judged(row_of({9, nan, 3, 4}), expected, {&expected}).parts[1].passed);
}

TEST_CASE("plain evaluations in float64 are the reference, and in bfloat16 near it") {
  for (const testing::LayerShape& shape : testing::varied_shapes()) {
    const LayerTensors whole = testing::random_layer(shape, 3);
    const LayerTensors layer = testing::with_queries(whole, 0, shape.context, ElementType::float64);
    const auto reference = make_reference_backend()->scoring(layer);
    for (const ElementType type : {ElementType::float64, ElementType::bfloat16}) {
      const double tolerance = type == ElementType::float64 ? 1e-12 : 0.1;
      const Precision precision(type);
      const LayerTensors inputs = round_layer(layer, precision);
      for (const Program& program : kPrograms) {
        const auto plain = make_plain_scoring(inputs, precision, program, 2);
        const auto near = [&](const Matrix& a, const Matrix& b) { return (a - b).norm() <= tolerance * b.norm(); };
        CHECK(near(plain->window_statistics(5).squares, reference->window_statistics(5).squares));
        for (const Primitive& primitive : primitives(std::min<Index>(5, shape.context))) {
          CAPTURE(primitive.name);
          CHECK(near(primitive.compute(LayerView(inputs), *plain), primitive.compute(LayerView(layer), *reference)));
        }
      }
    }
  }
}

}  // namespace laprox::verify
