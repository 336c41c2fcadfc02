// Policies and judging on half types, and what only the CUDA backend has.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "backends/cuda/laprox.h"
#include "backends/cuda/scoring.h"
#include "gpu/half_layers.h"
#include "laprox/cuda.h"
#include "laprox/error.h"
#include "support/tolerances.h"

namespace laprox::testing {

namespace {

constexpr ElementType kHalfTypes[] = {ElementType::float16, ElementType::bfloat16};

double difference(const Matrix& found, const Matrix& expected) {
  return (found - expected).cwiseAbs().maxCoeff() / expected.cwiseAbs().maxCoeff();
}

double total_error(const OutputError& error) {
  return std::sqrt(std::accumulate(error.query_error.begin(), error.query_error.end(), 0.0));
}

LayerKeep random_keep(const LayerShape& shape, std::vector<Ranking>& rankings, unsigned seed) {
  std::mt19937 generator(seed);
  LayerKeep keep;
  for (Index head = 0; head < shape.geometry.kv_heads; ++head) {
    Ranking& ranking = rankings.emplace_back(static_cast<std::size_t>(shape.context));
    std::iota(ranking.begin(), ranking.end(), 0);
    std::shuffle(ranking.begin(), ranking.end(), generator);
  }
  for (int b = 0; b < 4; ++b) {
    auto& counts = keep.counts.emplace_back();
    for (Index head = 0; head < shape.geometry.kv_heads; ++head) {
      counts.push_back(static_cast<Index>(generator() % static_cast<unsigned>(shape.context + 1)));
    }
  }
  keep.rankings = rankings;
  return keep;
}

/// Tokens that are in the better half of their head's places in one matrix alone.
double differing_halves(const Matrix& found, const Matrix& exact) {
  const auto better = [](const Matrix& places) {
    return (places.array() > static_cast<double>(places.cols()) / 2).eval();
  };
  return static_cast<double>((better(found) != better(exact)).count());
}

/// Where scores are places, a rounding that swaps two chunks of ten tokens moves them all.
constexpr double kSwapped = 0.1;

}  // namespace

TEST_CASE("every scorer gives the reference's scores in half types") {
  const auto both = backends();
  unsigned seed = 200;
  for (const LayerShape& shape : gpu_shapes()) {
    if (shape.context > 400) continue;  // the reference is slow
    for (ElementType type : kHalfTypes) {
      const LayerTensors whole = random_layer(shape, ++seed);
      const HalfLayer prompt = rounded(whole, 0, shape.context, type);
      for (const ScorerInfo& info : scorers()) {
        const Policy policy = parse_policy(info.name);
        if (policy.scorer->traits().depends_on_budget ||
            policy.scorer->traits().queries.kind == QueryNeed::Kind::judged)
          continue;
        if (policy.scorer->traits().longest_context < shape.context) continue;
        CAPTURE(info.name);
        CAPTURE(shape.context);
        CAPTURE(to_string(type));
        const Matrix exact = policy.scorer->score(LayerView(prompt.exact), *both[0]->scoring(prompt.exact));
        const Matrix found = policy.scorer->score(LayerView(prompt.half), *both[1]->scoring(prompt.half));
        if (policy.scorer->traits().scores_are_places) {
          CHECK(differing_halves(found, exact) <= kSwapped * static_cast<double>(exact.size()));
        } else {
          CHECK((found - exact).cwiseAbs().maxCoeff() <= kScore * exact.cwiseAbs().maxCoeff());
        }
      }
    }
  }
}

TEST_CASE("judging in half types gives the reference's errors of the same numbers") {
  const auto both = backends();
  unsigned seed = 300;
  for (const LayerShape& shape : gpu_shapes()) {
    for (ElementType type : kHalfTypes) {
      CAPTURE(to_string(type));
      CAPTURE(shape.context);
      const LayerTensors whole = random_layer(shape, ++seed);
      const HalfLayer judged = rounded(whole, shape.context, whole.tokens, type);
      std::vector<Ranking> rankings;
      const LayerKeep keep = random_keep(shape, rankings, seed);
      for (SoftmaxMode mode : {SoftmaxMode::renormalized, SoftmaxMode::truncated}) {
        const LayerErrors exact = both[0]->layer_errors(judged.exact, {keep}, mode);
        const LayerErrors found = both[1]->layer_errors(judged.half, {keep}, mode);
        CHECK(difference(found.exact.output, exact.exact.output) <= kScore);
        for (std::size_t b = 0; b < keep.counts.size(); ++b) {
          const OutputError &e = exact.errors[0][b], &f = found.errors[0][b];
          CHECK(total_error(f) == doctest::Approx(total_error(e)).epsilon(kError));
          CHECK(f.retained_mass == doctest::Approx(e.retained_mass).epsilon(kScore));
          CHECK(f.bound == doctest::Approx(e.bound).epsilon(kScore));
        }
      }
    }
  }
}

TEST_CASE("LaProx scores that stay on the device are the policy's") {
  const auto reference = make_reference_backend();
  const Policy policy = parse_policy("laprox");
  unsigned seed = 400;
  for (const LayerShape& shape : gpu_shapes()) {
    CAPTURE(shape.context);
    const HalfLayer prompt = rounded(random_layer(shape, ++seed), std::max<Index>(0, shape.context - 32), shape.context,
                                     ElementType::bfloat16);
    const cuda::Stream stream;
    const cuda::DeviceLayer layer(prompt.half, 1, stream);
    cuda::LaProxScores scores(layer.view(), 32, 7);
    scores.launch(stream);
    const Matrix found = cuda::download_matrix(scores.scores(), shape.geometry.kv_heads, shape.context, 1, stream);
    const Matrix exact = policy.scorer->score(LayerView(prompt.exact), *reference->scoring(prompt.exact));
    CHECK(difference(found, exact) <= kScore);
  }
}

TEST_CASE("too much memory and too large heads are errors that say what to do") {
  CHECK_THROWS_WITH_AS(cuda::DeviceBuffer<float>(std::size_t{1} << 50), doctest::Contains("--backend cpu"),
                       BackendError);
  const LayerTensors large =
      with_queries(random_layer({.geometry = {1, 1, 300, 8, 8}}, 1), 0, 24, ElementType::float32);
  const auto backend = std::move(backends()[1]);
  CHECK_THROWS_WITH_AS(backend->scoring(large)->column_sums(), doctest::Contains("up to 256"), BackendError);
  CHECK_THROWS_AS(make_cuda_backend(1000), BackendError);
}

}  // namespace laprox::testing
