#include <benchmark/benchmark.h>

#include "laprox/dump_reader.h"
#include "laprox/sweep.h"
#include "layers.h"

namespace laprox::bench {

namespace {

const char* const kWindowPolicies[] = {
    "snapkv", "snapkv:pool=avg,kernel=5", "snapkv:gqa=max", "snapkv+ada", "snapkv+layer", "laprox+head", "laprox+layer",
    "laprox"};

/// A whole sweep of one layer from its dump: reading, hashing, scores, rankings, errors.
void sweep(benchmark::State& state, std::size_t policies, Index budgets, int threads) {
  const DumpReader dump(random_dump(32768, 64, 32));
  const auto backend = make_cpu_backend(threads);
  SweepOptions options;
  for (std::size_t p = 0; p < policies; ++p) options.policies.push_back(parse_policy(kWindowPolicies[p]));
  for (Index b = 1; b <= budgets; ++b) {
    options.budgets.push_back(parse_budget(std::to_string(32768 * b / (2 * budgets))));
  }
  for (auto _ : state) benchmark::DoNotOptimize(sweep_dump(dump, options, *backend).policies.data());
}

/// Arguments: policies, budgets, threads.
void sweep_case(benchmark::State& state) {
  sweep(state, static_cast<std::size_t>(state.range(0)), state.range(1), static_cast<int>(state.range(2)));
}

}  // namespace

BENCHMARK(sweep_case)
    ->Name("sweep")
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Args({1, 1, 2})
    ->Args({1, 32, 2})
    ->Args({1, 32, 1})
    ->Args({1, 8, 2})
    ->Args({1, 8, 1})
    ->Args({8, 8, 2})
    ->Args({8, 8, 1});

}  // namespace laprox::bench
