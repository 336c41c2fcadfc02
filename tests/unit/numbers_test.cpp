// Element types and the vector arithmetic of the fast backend.

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>
#include <random>

#include "backends/cpu/lanes.h"
#include "backends/cpu/product.h"
#include "base/convert.h"
#include "laprox/dump_reader.h"
#include "laprox/dump_writer.h"
#include "laprox/error.h"
#include "support/layers.h"

namespace laprox {

namespace {

/// The value of a small float by its definition: sign, exponent and mantissa fields.
double decode(std::uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double mantissa = bits & ((1U << mantissa_bits) - 1), unit = std::ldexp(1.0, -mantissa_bits);
  const double sign = bits >> (exponent_bits + mantissa_bits) ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return mantissa == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * mantissa * unit * std::ldexp(1.0, 1 - bias);
  return sign * (1 + mantissa * unit) * std::ldexp(1.0, exponent - bias);
}

std::vector<std::uint16_t> all_patterns() {
  std::vector<std::uint16_t> bits(65536);
  std::iota(bits.begin(), bits.end(), std::uint16_t{0});
  return bits;
}

}  // namespace

TEST_CASE("every half and bfloat16 pattern converts to its value, and finite ones back to themselves") {
  const std::vector<std::uint16_t> bits = all_patterns();
  for (const auto& [type, exponent, mantissa] :
       {std::tuple{ElementType::float16, 5, 10}, {ElementType::bfloat16, 8, 7}}) {
    std::vector<float> values(bits.size());
    std::vector<double> wide(bits.size());
    io::convert(reinterpret_cast<const std::byte*>(bits.data()), type, values.data(), 65536);
    io::convert(reinterpret_cast<const std::byte*>(bits.data()), type, wide.data(), 65536);
    std::vector<std::uint16_t> again(bits.size());
    io::convert_to(values.data(), reinterpret_cast<std::byte*>(again.data()), type, 65536);
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const double expected = decode(bits[i], exponent, mantissa);
      if (std::isnan(expected)) {
        CHECK(std::isnan(values[i]));
        continue;
      }
      REQUIRE(values[i] == expected);
      REQUIRE(wide[i] == expected);
      REQUIRE(again[i] == bits[i]);
    }
  }
}

TEST_CASE("storing rounds to the nearest, ties to even") {
  const std::vector<float> values{1.0F + 0x1p-11F, 1.0F + 3 * 0x1p-11F, 1.0F + 0x1p-8F, 1.0F + 3 * 0x1p-8F, 65520.0F};
  std::vector<std::uint16_t> half(values.size()), brain(values.size());
  io::convert_to(values.data(), reinterpret_cast<std::byte*>(half.data()), ElementType::float16, 5);
  io::convert_to(values.data(), reinterpret_cast<std::byte*>(brain.data()), ElementType::bfloat16, 5);
  CHECK(half[0] == 0x3c00);
  CHECK(half[1] == 0x3c02);
  CHECK(half[4] == 0x7c00);
  CHECK(brain[2] == 0x3f80);
  CHECK(brain[3] == 0x3f82);
}

TEST_CASE("the first value that is not finite is found wherever it stands") {
  for (Index at : {0, 1, 15, 16, 99}) {
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> values(100, std::numeric_limits<float>::max());
      CHECK(!io::first_non_finite(values.data(), 100));
      values[static_cast<std::size_t>(at)] = bad;
      CHECK(io::first_non_finite(values.data(), 100) == at);
    }
  }
}

TEST_CASE("the vector exponential is within two units in the last place, exact at the ends") {
  float worst = 0;
  for (double x = 0; x > -87.2; x -= 0.00037) {
    const float argument = static_cast<float>(x);
    const float found = cpu::exp_nonpositive(cpu::broadcast(argument))[0];
    const float expected = static_cast<float>(std::exp(static_cast<double>(argument)));
    const float ulp = std::nextafter(expected, 2.0F) - expected;
    worst = std::max(worst, std::abs(found - expected) / ulp);
  }
  CHECK(worst <= 2);
  CHECK(cpu::exp_nonpositive(cpu::broadcast(0.0F))[0] == 1);
  CHECK(cpu::exp_nonpositive(cpu::broadcast(-88.0F))[0] == 0);
  CHECK(cpu::exp_nonpositive(cpu::broadcast(-1e30F))[0] == 0);
  CHECK(cpu::exp_nonpositive(cpu::broadcast(-INFINITY))[0] == 0);
}

TEST_CASE("the vector hyperbolic tangent") {
  for (float x : {-200.0F, -5.0F, -0.3F, -1e-3F, 0.0F, 1e-3F, 0.7F, 9.0F, 1e20F}) {
    CHECK(cpu::tanh(cpu::broadcast(x))[0] == doctest::Approx(std::tanh(x)).epsilon(1e-6).scale(0.1));
  }
}

TEST_CASE("the product equals a plain triple loop for every tile height and panel width") {
  std::mt19937 generator(8);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (Index rows = 1; rows <= 2 * cpu::kTile + 1; ++rows) {
    for (Index columns : {Index{1}, cpu::kPanel - 1, cpu::kPanel, 2 * cpu::kPanel + 3}) {
      const Index depth = 1 + static_cast<Index>(generator() % 40), stride = cpu::padded(columns);
      std::vector<float> a(static_cast<std::size_t>(rows * depth)), b(static_cast<std::size_t>(depth * columns));
      for (float& x : a) x = uniform(generator);
      for (float& x : b) x = uniform(generator);
      cpu::Panels panels(depth, columns);
      for (Index k = 0; k < depth; ++k) panels.set_row(k, b.data() + k * columns);
      std::vector<float> c(static_cast<std::size_t>(rows * stride), 1.0F);
      cpu::multiply(rows, depth, {a.data(), depth, 1}, panels, 0, panels.count(), c.data(), stride, true);
      for (Index m = 0; m < rows; ++m) {
        for (Index n = 0; n < columns; ++n) {
          double expected = 1;
          for (Index k = 0; k < depth; ++k)
            expected += static_cast<double>(a[static_cast<std::size_t>(m * depth + k)]) *
                        b[static_cast<std::size_t>(k * columns + n)];
          REQUIRE(c[static_cast<std::size_t>(m * stride + n)] == doctest::Approx(expected).epsilon(1e-5));
        }
      }
    }
  }
}

TEST_CASE("a dump that is written and read again is the same, in every element type") {
  const auto path = std::filesystem::temp_directory_path() / "laprox-round-trip.h5";
  const LayerTensors layer = testing::random_layer(
      {.geometry = {6, 2, 5, 3, 7},
       .context = 9,
       .decoded = 2,
       .attention = {.scale = 0.3, .softcap = 4, .sliding_window = 6, .sinks = {1, 2, 3, 4, 5, 6}},
       .bias = true},
      5);
  for (ElementType type : {ElementType::float16, ElementType::bfloat16, ElementType::float32, ElementType::float64}) {
    DumpInfo info;
    info.path = path;
    info.model = "round trip";
    info.context_length = 9;
    info.query_positions = layer.query_positions;
    DumpWriter writer(info, true);
    CHECK_THROWS_AS(DumpReader{std::filesystem::path("/nowhere.h5")}, FileError);
    writer.write_layer(layer, type);
    writer.commit();
    const DumpReader reader(path);
    CHECK(reader.info().model == "round trip");
    CHECK(reader.info().layers[0].k_type == type);
    CHECK(reader.info().layers[0].attention.sinks == layer.attention.sinks);
    CHECK(reader.info().layers[0].attention.sliding_window == 6);
    const LayerTensors read = reader.read_layer(0, {2, 8}, ElementType::float64);
    CHECK(read.query_positions == std::vector<Index>{2, 3, 4, 5, 6, 7});
    const double precision = type == ElementType::bfloat16 ? 0x1p-8 : type == ElementType::float16 ? 0x1p-10 : 0;
    for (Index head = 0; head < 6; ++head) {
      const auto expected = layer.q.matrix<double>(head).middleRows(2, 6);
      CHECK((read.q.matrix<double>(head) - expected).cwiseAbs().maxCoeff() <= precision * 5);
    }
    CHECK((read.w_o.matrix<double>() - layer.w_o.matrix<double>()).norm() <=
          precision * layer.w_o.matrix<double>().norm());
    CHECK(read.bias.size() == 7);
  }
  std::filesystem::remove(path);
}

TEST_CASE("a writer that is not committed leaves nothing behind") {
  const auto folder = std::filesystem::temp_directory_path() / "laprox-uncommitted";
  std::filesystem::create_directory(folder);
  {
    DumpInfo info;
    info.path = folder / "dump.h5";
    info.context_length = 1;
    info.query_positions = {0};
    const DumpWriter writer(info, false);
    CHECK(std::distance(std::filesystem::directory_iterator(folder), {}) == 1);
  }
  CHECK(std::filesystem::is_empty(folder));
  std::filesystem::remove(folder);
}

}  // namespace laprox
