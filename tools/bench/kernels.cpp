#include <benchmark/benchmark.h>

#include <cmath>
#include <numeric>
#include <string>

#include "bare_products.h"
#include "laprox/backend.h"
#include "laprox/policy.h"
#include "layers.h"
#include "peak_memory.h"

namespace laprox::bench {

namespace {

constexpr Index kWindow = 32;

/// H2O's column sums; arguments: context length, threads.
void column_sums(benchmark::State& state) {
  const LayerTensors& layer = random_layer(state.range(0), 0, state.range(0));
  const auto backend = make_cpu_backend(static_cast<int>(state.range(1)));
  const PeakMemory memory;
  for (auto _ : state) benchmark::DoNotOptimize(backend->scoring(layer)->column_sums().data());
  state.counters["peak_bytes"] = memory.above_start();  // the layer's tensors are there already
}

/// A policy's scores of a layer that holds the last `queries` queries; arguments: context length, threads.
void policy_scores(benchmark::State& state, const char* name, Index queries) {
  const LayerTensors& layer = random_layer(state.range(0), 0, queries);
  const auto backend = make_cpu_backend(static_cast<int>(state.range(1)));
  const Policy policy = parse_policy(name);
  const PeakMemory memory;
  for (auto _ : state) {
    benchmark::DoNotOptimize(policy.scorer->score(LayerView(layer), *backend->scoring(layer)).data());
  }
  state.counters["peak_bytes"] = memory.above_start();
}

void laprox_scores(benchmark::State& state) { policy_scores(state, "laprox", kWindow); }
void laprox_r_scores(benchmark::State& state) { policy_scores(state, "laprox-r", kWindow); }
void laprox_far_scores(benchmark::State& state) { policy_scores(state, "laprox-far", state.range(0)); }

/// H2O's and LaProx-far's scores from one pass; arguments: context length, threads.
void h2o_and_laprox_far(benchmark::State& state) {
  const LayerTensors& layer = random_layer(state.range(0), 0, state.range(0));
  const auto backend = make_cpu_backend(static_cast<int>(state.range(1)));
  const Policy h2o = parse_policy("h2o"), far = parse_policy("laprox-far");
  for (auto _ : state) {
    const auto kernels = backend->scoring(layer);
    kernels->expect_far_energies(far.scorer->traits().far_distance);
    for (const Policy* policy : {&h2o, &far}) {
      benchmark::DoNotOptimize(policy->scorer->score(LayerView(layer), *kernels).data());
    }
  }
}

/// The exact output of 64 decoded queries; arguments: context length, threads.
void exact_output_64(benchmark::State& state) {
  const LayerTensors& layer = random_layer(state.range(0), 64, 64);
  const auto backend = make_cpu_backend(static_cast<int>(state.range(1)));
  for (auto _ : state) {
    benchmark::DoNotOptimize(backend->layer_errors(layer, {}, SoftmaxMode::renormalized).exact.output.data());
  }
}

/// H2O's caches while as many tokens are decoded as the prompt had, cut to 1024 entries after each; arguments: context
/// length, threads.
constexpr Index kCache = 1024;

void h2o_decoding(benchmark::State& state) {
  const Index context = state.range(0);
  const LayerTensors& layer = random_layer(context, context, context);
  const auto backend = make_cpu_backend(static_cast<int>(state.range(1)));
  const Policy policy = parse_policy("h2o");
  const Matrix sums = Matrix::Random(layer.geometry.query_heads, context).cwiseAbs();
  std::vector<std::int32_t> first(kCache);
  std::iota(first.begin(), first.end(), 0);
  const std::vector held(static_cast<std::size_t>(layer.geometry.kv_heads), first);
  const auto evict = [&](const Matrix& of_entries, Index) {
    return policy.scorer->evict(policy.scorer->score_sums(of_entries), kCache);
  };
  for (auto _ : state) {
    benchmark::DoNotOptimize(backend->accumulate(layer, {sums, held, {.interval = 1}, evict}).data());
  }
}

void bare_decoding_steps(benchmark::State& state) {
  const LayerTensors& layer = random_layer(state.range(0), state.range(0), state.range(0));
  for (auto _ : state) decoding_steps(layer, kCache, static_cast<int>(state.range(1)));
}

template <Peer peer>
void bare_column_sums(benchmark::State& state) {
  const LayerTensors& layer = random_layer(state.range(0), 0, state.range(0));
  for (auto _ : state) causal_logits(peer, layer);
}

template <Peer peer>
void bare_laprox_scores(benchmark::State& state) {
  const LayerTensors& layer = random_layer(state.range(0), 0, kWindow);
  for (auto _ : state) {
    window_logits(peer, layer);
    value_gram(peer, layer);
  }
}

template <Peer peer>
void bare_laprox_r_scores(benchmark::State& state) {
  const LayerTensors& layer = random_layer(state.range(0), 0, kWindow);
  for (auto _ : state) removal(peer, layer);
}

template <Peer peer>
void bare_laprox_far_scores(benchmark::State& state) {
  const LayerTensors& layer = random_layer(state.range(0), 0, state.range(0));
  for (auto _ : state) far_removal(peer, layer);
}

template <Peer peer>
void bare_exact_output_64(benchmark::State& state) {
  const LayerTensors& layer = random_layer(state.range(0), 64, 64);
  for (auto _ : state) exact_output(peer, layer);
}

}  // namespace

/// Times are wall times of the process; the smallest of the repetitions counts.
#define LAPROX_CASE(function) BENCHMARK(function)->UseRealTime()->Unit(benchmark::kMillisecond)

LAPROX_CASE(column_sums)->Args({8192, 2})->Args({8192, 1})->Args({4096, 2})->Args({16384, 2});
LAPROX_CASE(bare_column_sums<Peer::eigen>)->Name("bare_eigen/column_sums")->Arg(8192);
LAPROX_CASE(bare_column_sums<Peer::openblas>)->Name("bare_openblas/column_sums")->Arg(8192);

LAPROX_CASE(laprox_scores)->Args({32768, 2})->Args({32768, 1})->Args({8192, 2})->Args({65536, 2});
LAPROX_CASE(bare_laprox_scores<Peer::eigen>)->Name("bare_eigen/laprox_scores")->Arg(32768);
LAPROX_CASE(bare_laprox_scores<Peer::openblas>)->Name("bare_openblas/laprox_scores")->Arg(32768);

LAPROX_CASE(laprox_r_scores)->Args({32768, 2})->Args({32768, 1})->Args({8192, 2})->Args({65536, 2});
LAPROX_CASE(bare_laprox_r_scores<Peer::eigen>)->Name("bare_eigen/laprox_r_scores")->Arg(32768);
LAPROX_CASE(bare_laprox_r_scores<Peer::openblas>)->Name("bare_openblas/laprox_r_scores")->Arg(32768);

LAPROX_CASE(laprox_far_scores)->Args({8192, 2})->Args({8192, 1});
LAPROX_CASE(h2o_and_laprox_far)->Args({8192, 2});
LAPROX_CASE(bare_laprox_far_scores<Peer::eigen>)->Name("bare_eigen/laprox_far_scores")->Arg(8192);
LAPROX_CASE(bare_laprox_far_scores<Peer::openblas>)->Name("bare_openblas/laprox_far_scores")->Arg(8192);

LAPROX_CASE(h2o_decoding)->Args({8192, 2})->Args({8192, 1});
LAPROX_CASE(bare_decoding_steps)->Args({8192, 2});

LAPROX_CASE(exact_output_64)->Args({32768, 2})->Args({32768, 1});
LAPROX_CASE(bare_exact_output_64<Peer::eigen>)->Name("bare_eigen/exact_output_64")->Arg(32768);
LAPROX_CASE(bare_exact_output_64<Peer::openblas>)->Name("bare_openblas/exact_output_64")->Arg(32768);

}  // namespace laprox::bench
