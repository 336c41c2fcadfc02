// Times the CUDA kernels on one layer of llama-3.1-8b in bfloat16, data on the device, and checks every result against
// the float64 reference where that takes no hours. Prints one line of JSON per case: name, milliseconds (median),
// error.
// usage: laprox_bench_cuda [laprox] [h2o] [laprox-r] [laprox-far] [laprox-far-1024] [sweep]; all where none is named.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/cuda/laprox.h"
#include "backends/cuda/removal.h"
#include "backends/cuda/scoring.h"
#include "base/parallel.h"
#include "check.h"
#include "data.h"
#include "laprox/array_source.h"
#include "laprox/cuda.h"
#include "laprox/error.h"
#include "laprox/sweep.h"

namespace {

using namespace laprox;
using laprox::cuda::check;

/// All of the host's cores copy layers.
const int kThreads = thread_count(0);

/// Milliseconds of each of many warm runs, launched from a graph as an engine would; the median.
double median_ms(cudaStream_t stream, const std::function<void()>& launch, int runs = 100) {
  launch();  // takes the memory
  check(cudaStreamSynchronize(stream), "warming up");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
  launch();
  check(cudaStreamEndCapture(stream, &graph), "capturing");
  check(cudaGraphInstantiate(&executable, graph, 0), "making a graph");
  const cuda::Event begin(cudaEventDefault), end(cudaEventDefault);
  std::vector<float> times;
  for (int run = 0; run < runs + 10; ++run) {
    begin.record(stream);
    check(cudaGraphLaunch(executable, stream), "launching a graph");
    end.record(stream);
    end.wait();
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "reading a time");
    if (run >= 10) times.push_back(ms);
  }
  check(cudaGraphExecDestroy(executable), "ending");
  check(cudaGraphDestroy(graph), "ending");
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[static_cast<std::size_t>(runs / 2)];
}

/// Milliseconds of work that takes its memory itself and waits for the device; the median.
double median_wall_ms(int runs, const std::function<void()>& work) {
  work();
  std::vector<double> times;
  for (int run = 0; run < runs; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  }
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[static_cast<std::size_t>(runs / 2)];
}

/// Negative errors are those that nobody measured.
void report(const std::string& name, double ms, double error = -1) {
  fmt::print("{{\"case\": \"{}\", \"ms\": {:.4f}, \"error\": {:.3g}}}\n", name, ms, error);
  std::fflush(stdout);
}

/// While it lives, the kernels for any device are used.
class OnlySm80 {
 public:
  OnlySm80() { cuda::allow_sm90(false); }
  ~OnlySm80() { cuda::allow_sm90(true); }
};

/// LaProx scores, window 32 and average pooling with kernel 7, whole and by its parts.
void bench_laprox(Index tokens) {
  const bench::BenchLayer data = bench::make_layer(tokens, 32);
  const cuda::Stream stream;
  const cuda::DeviceLayer on_device(data.half, kThreads, stream);
  const cuda::Layer& layer = on_device.view();
  cuda::LaProxScores scores(layer, 32, 7);
  const double ms = median_ms(stream, [&] { scores.launch(stream); });
  const Matrix found = cuda::download_matrix(scores.scores(), layer.kv_heads, tokens, kThreads, stream);
  report(fmt::format("laprox {}", tokens), ms, bench::laprox_error(data.exact, found, 32, 7));
  {
    const OnlySm80 only;
    report(fmt::format("laprox any {}", tokens), median_ms(stream, [&] { scores.launch(stream); }));
  }

  const std::size_t size = static_cast<std::size_t>(layer.query_heads) * static_cast<std::size_t>(tokens);
  cuda::DeviceBuffer<float2> partial;
  cuda::DeviceBuffer<cuda::RowSoftmax> softmax;
  cuda::DeviceBuffer<float> squares(size), norms(size);
  cuda::DeviceBuffer<cuda::FormPair> pairs(static_cast<std::size_t>(layer.query_heads));
  std::vector<cuda::FormPair> heads;
  for (int head = 0; head < layer.query_heads; ++head) heads.push_back({head, head});
  cuda::upload(pairs.data(), heads.data(), heads.size(), stream);
  cuda::PackedForms forms;
  report(fmt::format("row softmax {}", tokens), median_ms(stream, [&] {
           cuda::row_softmax(layer, {0, 32}, partial, softmax, stream);
         }));
  report(fmt::format("window columns {}", tokens), median_ms(stream, [&] {
           cuda::window_columns(layer, {0, 32}, softmax.data(), nullptr, squares.data(), stream);
         }));
  report(fmt::format("gram {}", tokens),
         median_ms(stream, [&] { cuda::pack_forms(layer, pairs.data(), layer.query_heads, forms, stream); }));
  report(fmt::format("value norms {}", tokens),
         median_ms(stream, [&] { cuda::value_forms(layer, forms, layer.group, true, norms.data(), stream); }));
}

/// How far the sums of all columns are from the number of queries, relative to it: every query's weights sum to 1.
double sum_error(const Matrix& sums, Index queries) {
  return (sums.rowwise().sum().array() / static_cast<double>(queries) - 1).abs().maxCoeff();
}

/// Both passes of H2O; with `reference`, checked against float64, which takes its time.
void bench_h2o(Index tokens, int runs, bool reference) {
  const bench::BenchLayer data = bench::make_layer(tokens, tokens);
  const cuda::Stream stream;
  const cuda::DeviceLayer on_device(data.half, kThreads, stream);
  const cuda::Layer& layer = on_device.view();
  cuda::DeviceBuffer<float2> partial;
  cuda::DeviceBuffer<cuda::RowSoftmax> softmax;
  cuda::DeviceBuffer<float> sums(static_cast<std::size_t>(layer.query_heads) * static_cast<std::size_t>(tokens));
  const auto rows = [&] { cuda::row_softmax(layer, {0, layer.queries}, partial, softmax, stream); };
  const auto columns = [&] { cuda::all_columns(layer, softmax.data(), sums.data(), stream); };
  const auto both = [&] {
    rows();
    columns();
  };
  const double ms = median_ms(stream, both, runs);
  const Matrix found = cuda::download_matrix(sums.data(), layer.query_heads, tokens, kThreads, stream);
  report(fmt::format("h2o {}", tokens), ms, reference ? bench::column_sum_error(data.exact, found) : -1);
  report(fmt::format("h2o mass {}", tokens), 0, sum_error(found, tokens));
  report(fmt::format("h2o rows {}", tokens), median_ms(stream, rows, runs));
  report(fmt::format("h2o columns {}", tokens), median_ms(stream, columns, runs));
  const OnlySm80 only;
  report(fmt::format("h2o any {}", tokens), median_ms(stream, both, runs));
}

/// The largest difference of energies on the device from those that float64 gives, relative to the largest of these.
double energy_error(const cuda::Layer& layer, const cuda::DeviceBuffer<double>& energies,
                    const std::function<void(double*, cuda::DoubleScratch&)>& in_double, cudaStream_t stream) {
  cuda::DoubleScratch scratch;
  cuda::DeviceBuffer<double> exact(energies.size());
  in_double(exact.data(), scratch);
  Matrix found(layer.kv_heads, layer.context), expected(layer.kv_heads, layer.context);
  cuda::download(found.data(), energies.data(), energies.size(), stream);
  cuda::download(expected.data(), exact.data(), exact.size(), stream);
  return (found - expected).cwiseAbs().maxCoeff() / expected.maxCoeff();
}

/// What LaProx-R's scores are made of: the joint energies of removal at the window's queries.
void bench_removal(Index tokens) {
  const bench::BenchLayer data = bench::make_layer(tokens, 32);
  const cuda::Stream stream;
  const cuda::DeviceLayer on_device(data.half, kThreads, stream);
  const cuda::Layer& layer = on_device.view();
  cuda::DeviceBuffer<double> energies(static_cast<std::size_t>(layer.kv_heads) * static_cast<std::size_t>(tokens));
  cuda::RemovalScratch scratch;
  const double ms = median_wall_ms(20, [&] {
    cuda::removal_energies(layer, {0, 32}, true, true, energies.data(), scratch, stream);
  });
  const auto in_double = [&](double* exact, cuda::DoubleScratch& of_double) {
    cuda::removal_energies_double(layer, {0, 32}, true, true, exact, of_double, stream);
  };
  report(fmt::format("laprox-r {}", tokens), ms, energy_error(layer, energies, in_double, stream));
}

/// What LaProx-far adds: energies at the last `queries` queries, where they are 128 or more behind an entry; with
/// `reference`, checked against float64.
void bench_far(const std::string& name, Index tokens, int queries, int runs, bool reference) {
  const bench::BenchLayer data = bench::make_layer(tokens, queries);
  const cuda::Stream stream;
  const cuda::DeviceLayer on_device(data.half, kThreads, stream);
  const cuda::Layer& layer = on_device.view();
  cuda::DeviceBuffer<double> energies(static_cast<std::size_t>(layer.kv_heads) * static_cast<std::size_t>(tokens));
  cuda::RemovalScratch scratch;
  const auto run = [&] { cuda::far_energies(layer, 128, queries, energies.data(), scratch, stream); };
  const double ms = median_wall_ms(runs, run);
  const auto in_double = [&](double* exact, cuda::DoubleScratch& of_double) {
    cuda::far_energies_double(layer, 128, queries, cuda::LogitSums::exact, exact, of_double, stream);
  };
  report(fmt::format("{} {}", name, tokens), ms, reference ? energy_error(layer, energies, in_double, stream) : -1);
  const OnlySm80 only;
  report(fmt::format("{} any {}", name, tokens), median_wall_ms(runs, run));
}

/// The layer's arrays as a source of one layer, where they lie.
ArraySource source_of(const LayerTensors& layer) {
  DumpInfo info;
  info.path = "bench";
  info.context_length = info.tokens = layer.tokens;
  info.query_positions = layer.query_positions;
  info.layers.push_back({.geometry = layer.geometry,
                         .attention = layer.attention,
                         .q_type = ElementType::bfloat16,
                         .k_type = ElementType::bfloat16,
                         .v_type = ElementType::bfloat16,
                         .w_o_type = ElementType::bfloat16});
  return {info,
          [&layer](Index, LayerArray array, DumpInfo::Rows rows) -> ArrayView {
            const Tensor& t = array == LayerArray::q   ? layer.q
                              : array == LayerArray::k ? layer.k
                              : array == LayerArray::v ? layer.v
                                                       : layer.w_o;
            if (array != LayerArray::q || rows.count() == layer.queries()) return {t.type(), t.shape(), t.raw(), {}};
            std::vector<Index> shape = t.shape();
            const Index row = shape[2] * 2, all = shape[1] * row, some = rows.count() * row;
            auto copy = std::make_shared<std::vector<std::byte>>(static_cast<std::size_t>(shape[0] * some));
            for (Index head = 0; head < shape[0]; ++head) {
              std::copy_n(t.raw() + head * all + rows.first * row, some, copy->data() + head * some);
            }
            shape[1] = rows.count();
            return {t.type(), shape, copy->data(), copy};
          },
          kThreads};
}

/// A sweep of one layer whose tensors are in host memory, judged by its window, beside the time that its tensors take
/// to the device from pinned memory.
void bench_sweep(Index tokens) {
  const bench::BenchLayer data = bench::make_layer(tokens, tokens);
  const ArraySource source = source_of(data.half);
  SweepOptions options;
  for (const char* policy : {"streaming", "snapkv", "laprox", "h2o", "knorm", "keydiff", "tova", "laprox+layer"}) {
    options.policies.push_back(parse_policy(policy));
  }
  for (const char* budget : {"5%", "10%", "20%", "40%"}) options.budgets.push_back(parse_budget(budget));
  options.queries = JudgedQueries::window;
  const auto backend = make_cuda_backend(0, 0);
  report(fmt::format("sweep {}", tokens), median_wall_ms(3, [&] { sweep_dump(source, options, *backend); }));

  const cuda::Stream stream;
  const std::size_t piece = std::size_t{1} << 28;
  auto* pinned = static_cast<std::byte*>(cuda::allocate_pinned(piece));
  cuda::DeviceBuffer<std::byte> target(piece);
  std::fill_n(pinned, piece, std::byte{1});
  const double ms = median_wall_ms(10, [&] {
    cuda::upload(target.data(), pinned, piece, stream);
    stream.wait();
  });
  const LayerTensors& layer = data.half;
  const double bytes = 2.0 * static_cast<double>(layer.q.size() + layer.k.size() + layer.v.size() + layer.w_o.size());
  report(fmt::format("transfer {}", tokens), ms * bytes / static_cast<double>(piece));
  report(fmt::format("layer to device {}", tokens), median_wall_ms(3, [&] {
           const cuda::DeviceLayer copy(layer, kThreads, stream);
           stream.wait();
         }));
  cudaFreeHost(pinned);
}

/// The cases by the names that the command line may give; all of them where it gives none.
const std::vector<std::pair<std::string, std::function<void()>>> kCases = {
    {"laprox",
     [] {
       bench_laprox(32768);
       bench_laprox(131072);
     }},
    {"h2o",
     [] {
       bench_h2o(8192, 100, true);
       bench_h2o(131072, 3, false);
     }},
    {"laprox-r",
     [] {
       bench_removal(32768);
       bench_removal(131072);
     }},
    {"laprox-far",
     [] {
       bench_far("laprox-far", 8192, 8192, 10, true);
       bench_far("laprox-far", 32768, 32768, 3, true);
       bench_far("laprox-far", 131072, 131072, 1, false);
     }},
    {"laprox-far-1024",
     [] {
       bench_far("laprox-far-1024", 8192, 1024, 10, true);
       bench_far("laprox-far-1024", 32768, 1024, 10, true);
       bench_far("laprox-far-1024", 131072, 1024, 3, true);
     }},
    {"sweep", [] { bench_sweep(131072); }},
};

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> wanted(argv + 1, argv + argc);
    fmt::print("{{\"device\": \"{}\"}}\n", cuda::describe_device(0));
    for (const auto& [name, bench] : kCases) {
      if (wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end()) bench();
    }
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 4;
  }
}
