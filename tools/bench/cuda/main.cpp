// Times the CUDA kernels on one layer of llama-3.1-8b in bfloat16, data on the device, and checks every result against
// the float64 reference. Prints one line of JSON per case: name, milliseconds (median), error.

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "backends/cuda/laprox.h"
#include "backends/cuda/scoring.h"
#include "check.h"
#include "data.h"
#include "laprox/error.h"

namespace {

using namespace laprox;
using laprox::cuda::check;

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

void report(const std::string& name, double ms, double error = -1) {
  fmt::print("{{\"case\": \"{}\", \"ms\": {:.4f}, \"error\": {:.3g}}}\n", name, ms, error);
  std::fflush(stdout);
}

/// LaProx scores, window 32 and average pooling with kernel 7, whole and by its parts.
void bench_laprox(Index tokens) {
  const bench::BenchLayer data = bench::make_layer(tokens, 32);
  const cuda::Stream stream;
  const cuda::DeviceLayer on_device(data.half, stream);
  const cuda::Layer& layer = on_device.view();
  cuda::LaProxScores scores(layer, 32, 7);
  const double ms = median_ms(stream, [&] { scores.launch(stream); });
  const Matrix found = cuda::download_matrix(scores.scores(), layer.kv_heads, tokens, stream);
  report(fmt::format("laprox {}", tokens), ms, bench::laprox_error(data.exact, found, 32, 7));

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

void bench_h2o(Index tokens) {
  const bench::BenchLayer data = bench::make_layer(tokens, tokens);
  const cuda::Stream stream;
  const cuda::DeviceLayer on_device(data.half, stream);
  const cuda::Layer& layer = on_device.view();
  cuda::DeviceBuffer<float2> partial;
  cuda::DeviceBuffer<cuda::RowSoftmax> softmax;
  cuda::DeviceBuffer<float> sums(static_cast<std::size_t>(layer.query_heads) * static_cast<std::size_t>(tokens));
  const auto rows = [&] { cuda::row_softmax(layer, {0, layer.queries}, partial, softmax, stream); };
  const auto columns = [&] { cuda::all_columns(layer, softmax.data(), sums.data(), stream); };
  const double ms = median_ms(stream, [&] {
    rows();
    columns();
  });
  const Matrix found = cuda::download_matrix(sums.data(), layer.query_heads, tokens, stream);
  report(fmt::format("h2o {}", tokens), ms, bench::column_sum_error(data.exact, found));
  report(fmt::format("h2o rows {}", tokens), median_ms(stream, rows));
  report(fmt::format("h2o columns {}", tokens), median_ms(stream, columns));
}

}  // namespace

int main() {
  try {
    fmt::print("{{\"device\": \"{}\"}}\n", cuda::describe_device(0));
    bench_laprox(32768);
    bench_laprox(131072);
    bench_h2o(8192);
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 4;
  }
}
