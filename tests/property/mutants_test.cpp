// The tolerances have teeth: a wrong computation of each usual kind must fall outside them. Every mutant is made by
// changing the input of a right computation so that it equals the faulty one.

#include <doctest/doctest.h>

#include <cmath>
#include <functional>

#include "support/layers.h"
#include "support/tolerances.h"

namespace laprox::testing {

namespace {

const LayerShape kShape{.geometry = {4, 2, 8, 8, 16},
                        .context = 40,
                        .decoded = 6,
                        .attention = {.scale = 0.4, .softcap = 3, .sliding_window = 25, .sinks = {1, -1, 2, 0}},
                        .bias = true};

void swap_rows(Tensor& tensor, Index slice, Index a, Index b) {
  const Index rows = tensor.shape()[1], columns = tensor.shape()[2];
  double* first = tensor.data<double>() + slice * rows * columns;
  std::swap_ranges(first + a * columns, first + (a + 1) * columns, first + b * columns);
}

void swap_blocks(double* data, Index block, Index a, Index b) {
  std::swap_ranges(data + a * block, data + (a + 1) * block, data + b * block);
}

struct Mutant {
  const char* fault;
  std::function<void(LayerTensors&)> apply;
};

const Mutant kMutants[] = {
    {"two keys swapped", [](LayerTensors& l) { swap_rows(l.k, 0, 20, 21); }},
    {"two values swapped", [](LayerTensors& l) { swap_rows(l.v, 1, 20, 21); }},
    {"the projections of two heads swapped", [](LayerTensors& l) { swap_blocks(l.w_o.data<double>(), 8 * 16, 1, 2); }},
    {"the head's projection transposed",
     [](LayerTensors& l) {
       Eigen::Map<Eigen::Matrix<double, 8, 8, Eigen::RowMajor>, 0, Eigen::OuterStride<16>>(l.w_o.data<double>())
           .transposeInPlace();
     }},
    {"query heads read the wrong KV head",
     [](LayerTensors& l) { swap_blocks(l.q.data<double>(), l.queries() * 8, 1, 2); }},
    {"the softmax scale missing", [](LayerTensors& l) { l.attention.scale = 1; }},
    {"the soft-cap missing", [](LayerTensors& l) { l.attention.softcap = 0; }},
    {"the sinks missing", [](LayerTensors& l) { l.attention.sinks.clear(); }},
    {"the sliding window missing", [](LayerTensors& l) { l.attention.sliding_window = 0; }},
    {"the sliding window one key too long", [](LayerTensors& l) { l.attention.sliding_window += 1; }},
    {"the sliding window one key too short", [](LayerTensors& l) { l.attention.sliding_window -= 1; }},
    {"the causal mask off by one",
     [](LayerTensors& l) {
       for (Index& p : l.query_positions) --p;
     }},
};

double difference(const Matrix& found, const Matrix& expected) { return (found - expected).norm() / expected.norm(); }

}  // namespace

TEST_CASE("every faulty output falls outside the tolerance of the exact output") {
  const auto reference = make_reference_backend();
  const LayerTensors whole = random_layer(kShape, 31);
  const LayerTensors right = with_queries(whole, 40, 46, ElementType::float64);
  const Matrix output = reference->layer_errors(right, {}, SoftmaxMode::renormalized).exact.output;
  for (const Mutant& mutant : kMutants) {
    CAPTURE(mutant.fault);
    LayerTensors wrong = with_queries(whole, 40, 46, ElementType::float64);
    mutant.apply(wrong);
    CHECK(difference(reference->layer_errors(wrong, {}, SoftmaxMode::renormalized).exact.output, output) > 10 * kScore);
  }
}

TEST_CASE("every faulty score falls outside the tolerance of scores") {
  const auto reference = make_reference_backend();
  const LayerTensors whole = random_layer(kShape, 32);
  const LayerTensors right = with_queries(whole, 0, 40, ElementType::float64);
  const Policy policy = parse_policy("laprox:window=8,kernel=3");
  const Matrix scores = policy.scorer->score(LayerView(right), *reference->scoring(right));
  for (const Mutant& mutant : kMutants) {
    CAPTURE(mutant.fault);
    LayerTensors wrong = with_queries(whole, 0, 40, ElementType::float64);
    mutant.apply(wrong);
    if (wrong.query_positions.front() < 0) wrong.query_positions.front() = 0;
    CHECK(difference(policy.scorer->score(LayerView(wrong), *reference->scoring(wrong)), scores) > 10 * kScore);
  }
}

TEST_CASE("every faulty error falls outside the tolerance of errors") {
  const auto reference = make_reference_backend();
  const LayerTensors whole = random_layer(kShape, 33);
  Ranking newest_first(40);
  for (int i = 0; i < 40; ++i) newest_first[static_cast<std::size_t>(i)] = 39 - i;
  const std::vector<Ranking> rankings(2, newest_first);
  const LayerKeep kept{rankings, {{10, 10}}};
  const auto error = [&](const LayerTensors& layer) {
    const LayerErrors replayed = reference->layer_errors(layer, {kept}, SoftmaxMode::renormalized);
    double sum = 0;
    for (double square : replayed.errors[0][0].query_error) sum += square;
    return std::sqrt(sum);
  };
  const double right = error(with_queries(whole, 40, 46, ElementType::float64));
  for (const Mutant& mutant : kMutants) {
    CAPTURE(mutant.fault);
    LayerTensors wrong = with_queries(whole, 40, 46, ElementType::float64);
    mutant.apply(wrong);
    CHECK(std::abs(error(wrong) - right) > 4 * kError * right);
  }
}

}  // namespace laprox::testing
