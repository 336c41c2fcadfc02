#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "laprox/array_source.h"
#include "laprox/error.h"
#include "laprox/policy.h"
#include "laprox/sweep.h"
#include "support/layers.h"

namespace laprox {

namespace {

/// Host memory that passes for a device's: it is read through this class or not at all.
class FakeMemory : public DeviceMemory {
 public:
  std::string name() const override { return "fake:3"; }
  void download(const StridedArray& source, std::byte* target) const override {
    ++downloads;
    visit(source, [&](const std::byte* element) {
      std::memcpy(target, element, static_cast<std::size_t>(size_of(source.type)));
      target += size_of(source.type);
    });
  }
  std::optional<Index> first_non_finite(const StridedArray& source) const override {
    std::optional<Index> found;
    Index number = 0;
    visit(source, [&](const std::byte* element) {
      float value = 0;
      std::memcpy(&value, element, sizeof(value));
      if (!found && !std::isfinite(value)) found = number;
      ++number;
    });
    return found;
  }
  mutable int downloads = 0;

 private:
  template <class Visit>
  static void visit(const StridedArray& source, const Visit& each) {
    if (source.shape.empty()) return each(source.data);
    for (Index i = 0; i < source.shape[0]; ++i) {
      const StridedArray slice = source.part(0, i, 1);
      visit({source.type,
             {slice.shape.begin() + 1, slice.shape.end()},
             {slice.strides.begin() + 1, slice.strides.end()},
             slice.data},
            each);
    }
  }
};

constexpr Index kHeads = 2, kTokens = 24, kSize = 4, kModel = 6;

/// A layer of float32 arrays that lie in a fake device's memory, with gaps: rows are two elements longer than they say.
struct Arrays {
  std::vector<float> q, k, v, w_o;
  std::shared_ptr<FakeMemory> memory = std::make_shared<FakeMemory>();

  Arrays() {
    for (auto* values : {&q, &k, &v}) fill(*values, kHeads * kTokens, kSize);
    fill(w_o, kHeads * kSize, kModel);
  }
  static void fill(std::vector<float>& values, Index rows, Index width) {
    for (Index row = 0; row < rows; ++row) {
      for (Index i = 0; i < width; ++i) values.push_back(std::sin(static_cast<float>(values.size()) * 1.7F));
      values.insert(values.end(), 2, NAN);
    }
  }
  ArraySource source(bool on_device) const {
    DumpInfo info;
    info.path = "arrays";
    info.context_length = 20;
    info.tokens = kTokens;
    for (Index i = 0; i < kTokens; ++i) info.query_positions.push_back(i);
    LayerSummary layer;
    layer.geometry = {kHeads, kHeads, kSize, kSize, kModel};
    layer.q_type = layer.k_type = layer.v_type = layer.w_o_type = ElementType::float32;
    info.layers = {layer};
    return {info,
            [this, on_device](Index, LayerArray array, DumpInfo::Rows rows) { return view(array, rows, on_device); }};
  }

 private:
  ArrayView view(LayerArray array, DumpInfo::Rows rows, bool on_device) const {
    const auto& values = array == LayerArray::q ? q : array == LayerArray::k ? k : array == LayerArray::v ? v : w_o;
    StridedArray found{ElementType::float32,
                       {kHeads, kTokens, kSize},
                       {kTokens * (kSize + 2), kSize + 2, 1},
                       reinterpret_cast<const std::byte*>(values.data())};
    if (array == LayerArray::q) found = found.part(1, rows.first, rows.count());
    if (array == LayerArray::w_o) {
      found.shape = {kHeads * kSize, kModel};
      found.strides = {kModel + 2, 1};
    }
    if (on_device) return {found.type, found.shape, found.data, nullptr, found.strides, memory};
    auto packed = std::make_shared<std::vector<std::byte>>(static_cast<std::size_t>(found.size() * 4));
    memory->download(found, packed->data());
    return {found.type, found.shape, packed->data(), packed};
  }
};

}  // namespace

TEST_CASE("a strided array's parts and density") {
  const float values[24] = {};
  const StridedArray array{ElementType::float32, {2, 3, 4}, {12, 4, 1}, reinterpret_cast<const std::byte*>(values)};
  CHECK(array.is_dense());
  const StridedArray part = array.part(1, 1, 2);
  CHECK(part.data == array.data + 16);
  CHECK(part.size() == 16);
  CHECK_FALSE(part.is_dense());
  CHECK(part.part(0, 1, 1).is_dense());
  CHECK_THROWS_AS(array.part(1, 2, 2), Bug);
}

TEST_CASE("tensors in a device's memory are used where they lie, and scorers read what they ask for") {
  const Arrays arrays;
  const LayerTensors device = arrays.source(true).read_layer(0, {4, 20}, ElementType::float32);
  const LayerTensors host = arrays.source(false).read_layer(0, {4, 20}, ElementType::float32);
  CHECK(device.k.memory() == arrays.memory.get());
  CHECK(host.k.memory() == nullptr);
  CHECK(reinterpret_cast<const float*>(device.q.on_device().data) == arrays.q.data() + 4 * (kSize + 2));
  const LayerView on_device(device), on_host(host);
  for (Index head = 0; head < kHeads; ++head) {
    CHECK(on_device.keys(head) == on_host.keys(head));
    CHECK(on_device.values(head) == on_host.values(head));
    CHECK(on_device.queries_of(head) == on_host.queries_of(head));
    CHECK(on_device.output_block(head) == on_host.output_block(head));
  }
}

TEST_CASE("a backend that reads the host's memory refuses tensors of a device in words") {
  const Arrays arrays;
  const ArraySource source = arrays.source(true);
  SweepOptions options;
  options.policies = {parse_policy("h2o")};
  options.budgets = {parse_budget("50%")};
  CHECK_THROWS_WITH_AS(select_kept(source, options, *make_cpu_backend(1)),
                       doctest::Contains("lies in the memory of fake:3"), BackendError);
  const LayerTensors layer = source.read_layer(0, {0, 20}, ElementType::float32);
  CHECK_THROWS_AS(layer.q.raw(), BackendError);
  CHECK_THROWS_AS(arrays.source(false).read_layer(0, {0, 20}, ElementType::float32).q.on_device(), Bug);
}

TEST_CASE("numbers that are not finite are found in a device's memory, with their place") {
  Arrays arrays;
  arrays.v[(kTokens + 3) * (kSize + 2) + 2] = INFINITY;
  CHECK_THROWS_WITH_AS(arrays.source(true).read_layer(0, {0, 20}, ElementType::float32),
                       doctest::Contains("expected finite values, found inf at [1, 3, 2]"), DumpError);
}

TEST_CASE("a device's array of another type than the backend's is refused") {
  const Arrays arrays;
  CHECK_THROWS_WITH_AS(arrays.source(true).read_layer(0, {0, 20}, ElementType::float64),
                       doctest::Contains("float32 in the memory of fake:3, where the backend computes in float64"),
                       UsageError);
}

}  // namespace laprox
