// What laprox.kept costs in C++, for kept.py to compare with: select_kept over layers in memory.
// usage: laprox_kept_bench LAYER.bin LAYERS TOKENS POLICY BUDGET THREADS REPEATS
// LAYER.bin: q [32, 32, 128], k and v [8, TOKENS, 128], w_o [4096, 4096], one behind the other, bfloat16; every layer
// is a copy. prints one line: seconds of each call, kept entries, and the peak of resident memory above the tensors in
// bytes.

#include <fmt/core.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>

#include "laprox/array_source.h"
#include "laprox/backend.h"
#include "laprox/policy.h"
#include "laprox/sweep.h"
#include "layers.h"
#include "peak_memory.h"

namespace {

using laprox::Index;
using Bytes = std::vector<std::byte>;

constexpr Index kQueries = 32;

struct Layer {
  std::vector<std::vector<Index>> shapes;
  std::vector<std::shared_ptr<Bytes>> arrays;
};

Layer read(const char* path, Index tokens) {
  Layer layer;
  layer.shapes = {{32, kQueries, 128}, {8, tokens, 128}, {8, tokens, 128}, {4096, 4096}};
  std::ifstream file(path, std::ios::binary);
  for (const auto& shape : layer.shapes) {
    std::size_t size = 2;
    for (const Index extent : shape) size *= static_cast<std::size_t>(extent);
    layer.arrays.push_back(std::make_shared<Bytes>(size));
    file.read(reinterpret_cast<char*>(layer.arrays.back()->data()), static_cast<std::streamsize>(size));
  }
  if (!file) throw std::runtime_error(std::string(path) + ": too short");
  return layer;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8) return 2;
  const Index layers = std::atol(argv[2]), tokens = std::atol(argv[3]);
  std::vector<Layer> model;
  for (Index i = 0; i < layers; ++i) model.push_back(read(argv[1], tokens));

  laprox::DumpInfo info;
  info.path = "layers in memory";
  info.context_length = info.tokens = tokens;
  for (Index position = tokens - kQueries; position < tokens; ++position) info.query_positions.push_back(position);
  laprox::LayerSummary summary;
  summary.geometry = laprox::bench::kLlama;
  summary.attention.scale = 1 / std::sqrt(128.0);
  summary.q_type = summary.k_type = summary.v_type = summary.w_o_type = laprox::ElementType::bfloat16;
  summary.has_residual_norms = true;
  info.layers.assign(static_cast<std::size_t>(layers), summary);
  const auto norms = std::make_shared<std::vector<double>>(kQueries, 50.0);  // laprox-r divides by them
  const laprox::ArraySource source(info, [&](Index layer, laprox::LayerArray array, laprox::DumpInfo::Rows) {
    if (array == laprox::LayerArray::residual_norms) {
      return laprox::ArrayView{
          laprox::ElementType::float64, {kQueries}, reinterpret_cast<const std::byte*>(norms->data()), norms};
    }
    const Layer& from = model[static_cast<std::size_t>(layer)];
    const auto number = static_cast<std::size_t>(array);  // q, k, v, w_o; all prompt queries are the policy's
    return laprox::ArrayView{laprox::ElementType::bfloat16, from.shapes[number], from.arrays[number]->data(),
                             from.arrays[number]};
  });

  laprox::SweepOptions options;
  options.policies = {laprox::parse_policy(argv[4])};
  options.budgets = {laprox::parse_budget(argv[5])};
  const auto backend = laprox::make_cpu_backend(std::atoi(argv[6]));
  const laprox::bench::PeakMemory memory;
  Index kept = 0;
  for (int i = 0; i < std::atoi(argv[7]); ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto selections = laprox::select_kept(source, options, *backend);
    fmt::print("{:.4f} ", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    kept = 0;
    for (const auto& layer : selections[0].counts[0])
      for (const Index count : layer) kept += count;
  }
  fmt::print("kept {} above {:.0f}\n", kept, memory.above_start());
}
