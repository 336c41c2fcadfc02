#include "layer_view.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "laprox/error.h"
#include "laprox/policy.h"

namespace laprox::python {

template <class T>
T* PolicyLayer::checked(T* pointer) {
  if (!pointer) throw UsageError("a policy's layer can only be read while the policy runs; copy what you keep");
  return pointer;
}

namespace {

using Array = nb::ndarray<nb::numpy, double>;

/// `count` matrices of one size, one behind another: [count, rows, columns].
template <class Part>
Array stack(Index count, const Part& part) {
  std::vector<double> values;
  std::vector<std::size_t> shape{static_cast<std::size_t>(count), 0, 0};
  for (Index i = 0; i < count; ++i) {
    const Matrix matrix = part(i);
    shape[1] = static_cast<std::size_t>(matrix.rows());
    shape[2] = static_cast<std::size_t>(matrix.cols());
    values.insert(values.end(), matrix.data(), matrix.data() + matrix.size());
  }
  return to_numpy(std::move(values), std::move(shape));
}

Array keys(const PolicyLayer& layer) {
  return stack(layer.view().geometry().kv_heads, [&](Index head) { return layer.view().keys(head); });
}

Array values(const PolicyLayer& layer) {
  return stack(layer.view().geometry().kv_heads, [&](Index head) { return layer.view().values(head); });
}

Array queries(const PolicyLayer& layer) {
  return stack(layer.view().geometry().query_heads,
               [&](Index head) -> Matrix { return layer.view().queries_of(head).bottomRows(layer.queries()); });
}

Array output_weights(const PolicyLayer& layer) {
  return stack(layer.view().geometry().query_heads, [&](Index head) { return layer.view().output_block(head); });
}

/// A primitive: it is computed without the interpreter's lock, and copied, because the kernels keep theirs.
template <class Primitive>
Array compute(const PolicyLayer& layer, const Primitive& primitive) {
  ScoringKernels& kernels = layer.kernels();
  Matrix result;
  {
    const nb::gil_scoped_release unlocked;
    result = primitive(kernels);
  }
  return to_numpy(std::move(result));
}

/// Fails in words rather than by an invariant where the policy did not ask for the queries that it now reads.
void check_queries(const PolicyLayer& layer, Index wanted, const char* what) {
  if (wanted < 1) {
    throw UsageError(std::string(what) + ": expected a window of 1 query or more, found " + std::to_string(wanted));
  }
  const Index needed = std::min(wanted, layer.view().context_length());
  if (layer.queries() >= needed) return;
  throw UsageError(std::string(what) + " reads the last " + std::to_string(needed) +
                   " prompt queries, and the policy asked for " + std::to_string(layer.queries()) +
                   "; say queries=" + std::to_string(needed) + " or queries=\"all\" in @laprox.policy(...)");
}

Array builtin_scores(const PolicyLayer& layer, const std::string& text) {
  const Policy policy = parse_policy(text);
  const QueryNeed need = policy.scorer->traits().queries;
  if (need.kind == QueryNeed::Kind::judged)
    throw UsageError("policy '" + text + "' reads held-out queries, which a policy cannot");
  if (need.kind == QueryNeed::Kind::window) check_queries(layer, need.window, text.c_str());
  if (need.kind == QueryNeed::Kind::all)
    check_queries(layer, need.counted(layer.view().context_length()), text.c_str());
  if (policy.scorer->traits().depends_on_budget) {
    const Index tokens = layer.tokens();
    if (tokens == 0)
      throw UsageError("the scores of '" + text + "' depend on the budget; take it as a second argument");
    return compute(layer, [&](ScoringKernels& kernels) {
      return policy.scorer->score_each({&tokens, 1}, layer.view(), kernels).at(0);
    });
  }
  return compute(layer, [&](ScoringKernels& kernels) { return policy.scorer->score(layer.view(), kernels); });
}

template <class Primitive>
auto windowed(const char* name, const Primitive& primitive) {
  return [name, primitive](const PolicyLayer& layer, Index window) {
    check_queries(layer, window, name);
    return compute(layer, [&](ScoringKernels& kernels) { return primitive(kernels, window); });
  };
}

}  // namespace

void add_layer_view(nb::module_& module) {
  nb::class_<PolicyLayer>(module, "PolicyLayer",
                          "What a policy may read of a layer while it runs: the prompt's tokens, no held-out query.")
      .def_prop_ro(
          "index", [](const PolicyLayer& layer) { return layer.view().layer(); }, "Number of the layer.")
      .def_prop_ro(
          "query_heads", [](const PolicyLayer& layer) { return layer.view().geometry().query_heads; }, "H_q")
      .def_prop_ro(
          "kv_heads", [](const PolicyLayer& layer) { return layer.view().geometry().kv_heads; }, "H_kv")
      .def_prop_ro(
          "group", [](const PolicyLayer& layer) { return layer.view().geometry().group(); },
          "Query heads that read one KV head.")
      .def_prop_ro(
          "tokens", [](const PolicyLayer& layer) { return layer.view().context_length(); },
          "C, the prompt's tokens, which compete for the budget.")
      .def_prop_ro("scale", [](const PolicyLayer& layer) { return layer.view().attention().scale; })
      .def_prop_ro(
          "softcap", [](const PolicyLayer& layer) { return layer.view().attention().softcap; }, "0: none.")
      .def_prop_ro(
          "sliding_window", [](const PolicyLayer& layer) { return layer.view().attention().sliding_window; },
          "0: none.")
      .def_prop_ro(
          "query_positions",
          [](const PolicyLayer& layer) {
            const std::vector<Index>& stored = layer.view().query_positions();
            std::vector<std::int64_t> positions(stored.end() - layer.queries(), stored.end());
            const std::size_t count = positions.size();
            return to_numpy(std::move(positions), {count});
          },
          nb::rv_policy::move, "[N] positions of the rows of q.")
      .def_prop_ro("k", &keys, nb::rv_policy::move, "[kv_heads, C, d] float64, a copy.")
      .def_prop_ro("v", &values, nb::rv_policy::move, "[kv_heads, C, d_v] float64, a copy.")
      .def_prop_ro("q", &queries, nb::rv_policy::move,
                   "[query_heads, N, d] float64, a copy: the prompt queries that the policy asked for.")
      .def_prop_ro("w_o", &output_weights, nb::rv_policy::move, "[query_heads, d_v, D] float64, a copy.")
      .def("attention_sums",
           windowed(
               "attention_sums",
               [](ScoringKernels& kernels, Index window) -> Matrix { return kernels.window_statistics(window).sum; }),
           nb::arg("window"), "[query_heads, C]: sum over the last `window` prompt queries t of A[t, i].")
      .def("attention_squares",
           windowed("attention_squares",
                    [](ScoringKernels& kernels, Index window) -> Matrix {
                      return kernels.window_statistics(window).squares;
                    }),
           nb::arg("window"), "[query_heads, C]: sum over the last `window` prompt queries t of A[t, i]^2.")
      .def(
          "column_sums",
          [](const PolicyLayer& layer) {
            check_queries(layer, layer.view().context_length(), "column_sums");
            return compute(layer, [](ScoringKernels& kernels) { return kernels.column_sums(); });
          },
          "[query_heads, C]: sum over all prompt queries t >= i of A[t, i].")
      .def(
          "value_norms",
          [](const PolicyLayer& layer) {
            return compute(layer, [](ScoringKernels& kernels) { return kernels.value_norms(); });
          },
          "[query_heads, C]: the L2 norm of v_i W_O of each query head.")
      .def(
          "value_l1_norms",
          [](const PolicyLayer& layer) {
            return compute(layer, [](ScoringKernels& kernels) { return kernels.value_l1_norms(); });
          },
          "[query_heads, C]: the L1 norm of v_i W_O of each query head.")
      .def("scores", &builtin_scores, nb::arg("policy"),
           "[kv_heads, C]: the scores of a built-in policy on this layer.");
}

}  // namespace laprox::python
