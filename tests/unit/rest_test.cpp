// A dump whose file is closed between two looks at it.

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "laprox/dump_reader.h"
#include "laprox/error.h"

namespace laprox {

namespace {

const std::filesystem::path kBundled = std::filesystem::path(LAPROX_SOURCE_DIR) / "data" / "niah-1k.h5";

/// A folder of one's own, which goes when its owner goes.
struct Scratch {
  Scratch() : path(std::filesystem::temp_directory_path() / fmt::format("laprox-rest-{}", getpid())) {
    std::filesystem::create_directory(path);
  }
  ~Scratch() { std::filesystem::remove_all(path); }
  const std::filesystem::path path;
};

bool same(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::equal(a.raw(), a.raw() + a.size() * size_of(a.type()), b.raw());
}

}  // namespace

TEST_CASE("a dump that rested reads the same") {
  const DumpReader dump(kBundled);
  const LayerTensors before = dump.read_layer(1, {0, 4}, ElementType::float32);
  dump.rest();
  const LayerTensors after = dump.read_layer(1, {0, 4}, ElementType::float32);
  CHECK(same(before.q, after.q));
  CHECK(same(before.k, after.k));
  CHECK(same(before.w_o, after.w_o));
}

TEST_CASE("a dump that changed while it rested is refused") {
  const Scratch folder;
  const std::filesystem::path path = folder.path / "dump.h5";
  std::filesystem::copy_file(kBundled, path);
  const DumpReader dump(path);
  dump.rest();
  SUBCASE("it is longer") { std::ofstream(path, std::ios::app) << "x"; }
  SUBCASE("it is another file") {
    std::filesystem::rename(path, folder.path / "old.h5");
    std::filesystem::copy_file(kBundled, path);
  }
  SUBCASE("it is gone") { std::filesystem::remove(path); }
  CHECK_THROWS_AS(dump.read_layer(0, {0, 4}, ElementType::float32), DumpError);
}

}  // namespace laprox
