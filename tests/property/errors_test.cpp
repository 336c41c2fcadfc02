// The laws of judging kept sets, in both backends.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "laprox/metrics.h"
#include "support/layers.h"
#include "support/tolerances.h"

namespace laprox::testing {

namespace {

/// A layer with its decoded queries, and a policy's worth of random rankings and counts.
struct Case {
  LayerTensors layer;
  std::vector<Ranking> rankings;
  std::vector<std::vector<Index>> counts;  ///< [budget][kv_head]

  LayerKeep keep() const { return {rankings, counts}; }
};

Case make_case(const LayerShape& shape, unsigned seed, ElementType type, std::size_t budgets = 5) {
  const LayerTensors whole = random_layer(shape, seed);
  Case result{with_queries(whole, whole.context_length, whole.tokens, type), {}, {}};
  std::mt19937 generator(seed + 100);
  for (Index head = 0; head < shape.geometry.kv_heads; ++head) {
    Ranking ranking(static_cast<std::size_t>(shape.context));
    std::iota(ranking.begin(), ranking.end(), 0);
    std::shuffle(ranking.begin(), ranking.end(), generator);
    result.rankings.push_back(std::move(ranking));
  }
  for (std::size_t b = 0; b < budgets; ++b) {
    auto& counts = result.counts.emplace_back();
    for (Index head = 0; head < shape.geometry.kv_heads; ++head) {
      counts.push_back(static_cast<Index>(generator() % static_cast<unsigned>(shape.context + 1)));
    }
  }
  result.counts.push_back(std::vector<Index>(static_cast<std::size_t>(shape.geometry.kv_heads), shape.context));
  return result;
}

double total_error(const OutputError& error) {
  return std::sqrt(std::accumulate(error.query_error.begin(), error.query_error.end(), 0.0));
}

bool same(const OutputError& a, const OutputError& b) {
  return a.query_error == b.query_error && a.kept_square == b.kept_square && a.kept_product == b.kept_product &&
         a.head_error == b.head_error && a.retained_mass == b.retained_mass && a.bound == b.bound;
}

constexpr SoftmaxMode kModes[] = {SoftmaxMode::renormalized, SoftmaxMode::truncated};

/// Judges random kept sets on the fast backend and on the reference.
void check_against_reference(const LayerShape& shape, SoftmaxMode mode) {
  const auto both = backends();
  CAPTURE(shape.context);
  const Case exact_case = make_case(shape, 7, ElementType::float64),
             fast_case = make_case(shape, 7, ElementType::float32);
  const LayerErrors exact = both[0]->layer_errors(exact_case.layer, {exact_case.keep()}, mode);
  const LayerErrors fast = both[1]->layer_errors(fast_case.layer, {fast_case.keep()}, mode);
  CHECK((exact.exact.output - fast.exact.output).norm() <= kScore * exact.exact.output.norm());
  for (std::size_t b = 0; b < exact_case.counts.size(); ++b) {
    const OutputError &e = exact.errors[0][b], &f = fast.errors[0][b];
    CHECK(total_error(f) == doctest::Approx(total_error(e)).epsilon(kError));
    CHECK(f.retained_mass == doctest::Approx(e.retained_mass).epsilon(kScore));
    CHECK(f.bound == doctest::Approx(e.bound).epsilon(kError));
    for (std::size_t h = 0; h < e.head_error.size(); ++h) {
      CHECK(std::sqrt(f.head_error[h]) == doctest::Approx(std::sqrt(e.head_error[h])).epsilon(kError));
    }
  }
}

}  // namespace

TEST_CASE("the fast backend gives the reference's outputs and errors") {
  for (const LayerShape& shape : varied_shapes()) {
    for (SoftmaxMode mode : kModes) check_against_reference(shape, mode);
  }
}

TEST_CASE("and so it does where a context is longer than the blocks that it is judged in") {
  for (const double spread : {1.0, 30.0}) {  // sharp attention leaves next to nothing in most blocks
    for (SoftmaxMode mode : kModes) check_against_reference({.context = 9000, .spread = spread}, mode);
  }
}

TEST_CASE("keeping everything moves nothing at all") {
  for (const auto& backend : backends()) {
    for (const LayerShape& shape : varied_shapes()) {
      for (SoftmaxMode mode : kModes) {
        const Case c = make_case(shape, 3, backend->element_type(), 0);
        const OutputError error = backend->layer_errors(c.layer, {c.keep()}, mode).errors[0][0];
        CHECK(total_error(error) == 0);
        CHECK(error.retained_mass == 1);
        CHECK(error.bound == 0);
      }
    }
  }
}

TEST_CASE("one walk along the ranking equals judging every budget on its own") {
  const auto backend = make_cpu_backend(2);
  for (const LayerShape& shape : varied_shapes()) {
    for (SoftmaxMode mode : kModes) {
      const Case c = make_case(shape, 11, ElementType::float32, 9);
      const LayerErrors together = backend->layer_errors(c.layer, {c.keep()}, mode);
      for (std::size_t b = 0; b < c.counts.size(); ++b) {
        const LayerKeep alone{c.rankings, {c.counts[b]}};
        const OutputError error = backend->layer_errors(c.layer, {alone}, mode).errors[0][0];
        CHECK(total_error(together.errors[0][b]) == doctest::Approx(total_error(error)).epsilon(kError));
        CHECK(together.errors[0][b].retained_mass == doctest::Approx(error.retained_mass).epsilon(kScore));
      }
    }
  }
}

TEST_CASE("a policy's figures do not depend on the other policies, nor on the number of threads") {
  for (const LayerShape& shape : varied_shapes()) {
    const Case a = make_case(shape, 1, ElementType::float32), b = make_case(shape, 2, ElementType::float32);
    const LayerKeep other{b.rankings, b.counts};
    const LayerErrors alone = make_cpu_backend(1)->layer_errors(a.layer, {a.keep()}, SoftmaxMode::renormalized);
    const LayerErrors among = make_cpu_backend(3)->layer_errors(a.layer, {other, a.keep()}, SoftmaxMode::renormalized);
    CHECK(alone.exact.output == among.exact.output);
    for (std::size_t n = 0; n < a.counts.size(); ++n) CHECK(same(alone.errors[0][n], among.errors[1][n]));
  }
}

TEST_CASE("scoring primitives do not depend on the number of threads") {
  for (const LayerShape& shape : varied_shapes()) {
    const LayerTensors whole = random_layer(shape, 5);
    const LayerTensors prompt = with_queries(whole, 0, whole.context_length, ElementType::float32);
    const auto one = make_cpu_backend(1), three = make_cpu_backend(3);
    const auto a = one->scoring(prompt), b = three->scoring(prompt);
    const LayerView view(prompt);
    CHECK(a->window_statistics(7).squares == b->window_statistics(7).squares);
    for (const Primitive& primitive : primitives(std::min<Index>(7, shape.context))) {
      CAPTURE(primitive.name);
      CHECK(primitive.compute(view, *a) == primitive.compute(view, *b));
    }
  }
}

TEST_CASE("the paper's bound holds for every kept set") {
  for (const auto& backend : backends()) {
    for (const LayerShape& shape : varied_shapes()) {
      const Case c = make_case(shape, 21, backend->element_type(), 8);
      const LayerErrors replayed = backend->layer_errors(c.layer, {c.keep()}, SoftmaxMode::truncated);
      for (const OutputError& error : replayed.errors[0]) {
        CHECK(error.bound * (1 + kScore) >= total_error(error));
      }
    }
  }
}

TEST_CASE("keeping the recent tokens equals dense attention over that window") {
  for (const auto& backend : backends()) {
    LayerShape shape{.context = 40, .decoded = 1};
    const LayerTensors whole = random_layer(shape, 17);
    LayerTensors layer = with_queries(whole, 40, 41, backend->element_type());
    Ranking newest_first(40);
    for (int i = 0; i < 40; ++i) newest_first[static_cast<std::size_t>(i)] = 39 - i;
    const std::vector<Ranking> rankings(2, newest_first);
    const LayerErrors full = backend->layer_errors(layer, {{rankings, {{12, 12}}}}, SoftmaxMode::renormalized);
    layer.attention.sliding_window = 13;  // 12 recent tokens and the query's own
    const LayerErrors windowed = backend->layer_errors(layer, {}, SoftmaxMode::renormalized);
    const Matrix delta = windowed.exact.output - full.exact.output;
    CHECK(full.errors[0][0].query_error[0] == doctest::Approx(delta.row(0).squaredNorm()).epsilon(1e-4));
  }
}

TEST_CASE("what little is left after the mass is evicted counts exactly") {
  const auto both = backends();
  for (double gap : {20.0, 69.0, 140.0}) {
    CAPTURE(gap);
    std::vector<double> errors;
    for (const auto& backend : both) {
      const LayerTensors whole = random_layer({.context = 30, .decoded = 4}, 9);
      LayerTensors layer = with_queries(whole, 30, 34, backend->element_type());
      // Key 3 of both KV heads answers every query with the same large logit.
      const auto put = [&](Tensor& tensor, Index at, double value) {
        if (tensor.type() == ElementType::float64)
          tensor.data<double>()[at] = value;
        else
          tensor.data<float>()[at] = static_cast<float>(value);
      };
      for (Index row = 0; row < 4 * 4; ++row) put(layer.q, row * 8, 1);
      for (Index head = 0; head < 2; ++head) {
        for (Index i = 0; i < 34; ++i) put(layer.k, (head * 34 + i) * 8, 0);
        for (Index c = 0; c < 8; ++c) put(layer.k, (head * 34 + 3) * 8 + c, c == 0 ? gap / layer.attention.scale : 0);
      }
      Ranking ranking(30);
      std::iota(ranking.begin(), ranking.end(), 0);
      std::rotate(ranking.begin() + 3, ranking.begin() + 4, ranking.end());  // key 3 goes last
      const std::vector<Ranking> rankings(2, ranking);
      const auto replayed = backend->layer_errors(layer, {{rankings, {{29, 29}}}}, SoftmaxMode::renormalized);
      errors.push_back(total_error(replayed.errors[0][0]));
    }
    CHECK(errors[1] == doctest::Approx(errors[0]).epsilon(1e-5));
  }
}

TEST_CASE("a tiny error is as accurate as a large one") {
  const auto both = backends();
  std::vector<double> errors;
  for (const auto& backend : both) {
    const LayerTensors whole = random_layer({.context = 60, .decoded = 3}, 13);
    LayerTensors layer = with_queries(whole, 60, 63, backend->element_type());
    // Token 5 is nearly invisible: its key points away from every query.
    for (Index head = 0; head < 2; ++head) {
      for (Index row = 0; row < 63; ++row) {
        const Index at = (head * 63 + row) * 8;
        if (backend->element_type() == ElementType::float64)
          layer.k.data<double>()[at] = row == 5 ? -40 : 0;
        else
          layer.k.data<float>()[at] = row == 5 ? -40 : 0;
      }
    }
    for (Index row = 0; row < 4 * 3; ++row) {
      if (backend->element_type() == ElementType::float64)
        layer.q.data<double>()[row * 8] = 1.2;
      else
        layer.q.data<float>()[row * 8] = 1.2F;
    }
    Ranking ranking(60);
    std::iota(ranking.begin(), ranking.end(), 0);
    std::rotate(ranking.begin() + 5, ranking.begin() + 6, ranking.end());
    const std::vector<Ranking> rankings(2, ranking);
    const auto replayed = backend->layer_errors(layer, {{rankings, {{59, 59}}}}, SoftmaxMode::renormalized);
    errors.push_back(total_error(replayed.errors[0][0]) / replayed.exact.output.norm());
  }
  CHECK(errors[0] < 1e-6);  // below float32's own rounding of the output
  CHECK(errors[0] > 0);
  CHECK(errors[1] == doctest::Approx(errors[0]).epsilon(1e-4));
}

TEST_CASE("garbage in an evicted entry that no query sees changes nothing") {
  for (const auto& backend : backends()) {
    LayerShape shape{.context = 40, .decoded = 4, .attention = {.scale = 0.35, .sliding_window = 10}};
    const LayerTensors whole = random_layer(shape, 23);
    const LayerTensors clean = with_queries(whole, 40, 44, backend->element_type());
    LayerTensors poisoned = with_queries(whole, 40, 44, backend->element_type());
    for (Index head = 0; head < 2; ++head) {
      for (Index at = head * 44 * 8; at < (head * 44 + 20) * 8; ++at) {
        if (backend->element_type() == ElementType::float64)
          poisoned.v.data<double>()[at] = 1e30;
        else
          poisoned.v.data<float>()[at] = 1e30F;
      }
    }
    Ranking newest_first(40);
    for (int i = 0; i < 40; ++i) newest_first[static_cast<std::size_t>(i)] = 39 - i;
    const std::vector<Ranking> rankings(2, newest_first);
    const LayerKeep kept{rankings, {{5, 7}}};
    CHECK(same(backend->layer_errors(clean, {kept}, SoftmaxMode::renormalized).errors[0][0],
               backend->layer_errors(poisoned, {kept}, SoftmaxMode::renormalized).errors[0][0]));
  }
}

}  // namespace laprox::testing
