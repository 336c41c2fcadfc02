#include "laprox/cost.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "backends/batches.h"
#include "dump/layer_stream.h"
#include "laprox/error.h"

namespace laprox {

namespace {

double product(std::initializer_list<Index> factors) {
  double result = 1;
  for (Index factor : factors) result *= static_cast<double>(factor);
  return result;
}

struct Queries {
  Index scoring = 0;  ///< prompt queries that are read
  Index window = 0;   ///< of these, the longest window
  Index recent = 0;   ///< of these, the last ones that a pass over queries and keys takes
  Index judging = 0;
};

Queries count_queries(const DumpInfo& dump, const SweepOptions& options) {
  Queries queries;
  const Index first =
      options.queries == JudgedQueries::decoded ? dump.context_length : dump.context_length - options.window;
  const Index last = options.queries == JudgedQueries::decoded ? dump.tokens : dump.context_length;
  queries.judging = std::max<Index>(1, dump.rows_between(first, last).count());
  bool judged = false;
  for (const Policy& policy : options.policies) {
    const QueryNeed need = policy.scorer->traits().queries;
    if (need.kind == QueryNeed::Kind::all) queries.recent = std::max(queries.recent, need.counted(dump.context_length));
    if (need.kind == QueryNeed::Kind::window) queries.window = std::max(queries.window, need.window);
    judged = judged || need.kind == QueryNeed::Kind::judged;
  }
  queries.window = std::min(queries.window, dump.context_length);
  queries.scoring = std::max(queries.recent, queries.window) + (judged ? queries.judging : 0);
  if (judged) queries.window = std::max(queries.window, queries.judging);
  return queries;
}

/// What is in memory of a layer of so many elements, the largest tensor having so many, before its turn comes.
void add_reading(Cost& cost, const LayerSummary& layer, std::size_t layers, const Backend& backend, double elements,
                 double largest) {
  const ElementType ahead = type_read_ahead(backend, layer);
  // Memory in which the only layer waited is kept for what comes after.
  if (layers > 1 || ahead != tensor_type(backend, layer)) {
    cost.ahead_bytes = std::max(cost.ahead_bytes, elements * static_cast<double>(size_of(ahead)));
  }
  if (layer.common_type() == ahead) return;
  cost.reading_bytes = std::max(cost.reading_bytes, largest * static_cast<double>(size_of(layer.k_type)));
}

/// Logits, weights, and sums over tokens that all threads hold while kept sets are judged.
double logit_elements(const LayerGeometry& g, Index tokens, const Queries& queries, Index policies, Index cells,
                      const Backend& backend) {
  const Index most = std::max<Index>(kRowsPerTask, g.group()), all = g.group() * queries.judging;
  const Index rows = std::min(most, all);
  const Index tasks = std::min<Index>(backend.threads(), g.kv_heads * ((all + most - 1) / most));
  if (backend.name() != "cpu") return product({tasks, rows, tokens});
  return product({tasks, rows, 2 * std::min(kBlockTokens, tokens)}) +
         product({tasks, rows, 2 + 2 * policies + cells, g.value_size});
}

void add_layer(Cost& cost, const LayerSummary& layer, const DumpInfo& dump, const SweepOptions& options,
               const Queries& queries, const Backend& backend) {
  const LayerGeometry& g = layer.geometry;
  const Index tokens = dump.tokens, context = dump.context_length, element = size_of(backend.element_type());
  const Index policies = static_cast<Index>(options.policies.size()),
              cells = policies * static_cast<Index>(options.budgets.size());
  const double q = product({g.query_heads, std::max(queries.scoring, queries.judging), g.head_size});
  const double k = product({g.kv_heads, tokens, g.head_size}), v = product({g.kv_heads, tokens, g.value_size});
  const double w_o = product({g.query_heads, g.value_size, g.model_size});
  const double elements = q + k + v + w_o;
  cost.layer_bytes = std::max(cost.layer_bytes, elements * static_cast<double>(element));
  add_reading(cost, layer, dump.layers.size(), backend, elements, std::max({q, k, v, w_o}));
  cost.logit_bytes = std::max(
      cost.logit_bytes, logit_elements(g, tokens, queries, policies, cells, backend) * static_cast<double>(element));
  cost.output_bytes =
      std::max(cost.output_bytes, std::min(product({1 + 2 * cells, queries.judging, g.query_heads, g.value_size}),
                                           static_cast<double>(kHeldElements)) *
                                      static_cast<double>(element));
  cost.ranking_bytes += product({policies, g.kv_heads, context, 12});

  cost.scoring_flops += 2 * product({g.query_heads, queries.window, context, g.head_size});
  cost.column_sum_flops += product({g.query_heads, queries.recent, 2 * context - queries.recent, g.head_size});
  cost.value_norm_flops += 2 * product({g.query_heads, context, g.value_size, g.value_size});
  for (const Policy& policy : options.policies) {
    cost.oracle_flops += policy.scorer->flops(g, context, queries.judging);
  }
  const double logits = 2 * product({g.query_heads, queries.judging, tokens, g.head_size});
  const double values = 2 * product({g.query_heads, queries.judging, tokens, g.value_size});
  const double projection = 2 * product({queries.judging, g.query_heads, g.value_size, g.model_size});
  cost.judging_flops +=
      logits + static_cast<double>(1 + policies) * values + static_cast<double>(1 + cells) * projection;
}

}  // namespace

Cost estimate_cost(const DumpInfo& dump, const SweepOptions& options, const Backend& backend) {
  Cost cost;
  const Queries queries = count_queries(dump, options);
  for (const LayerSummary& layer : dump.layers) add_layer(cost, layer, dump, options, queries, backend);
  return cost;
}

void check_memory(const DumpInfo& dump, const SweepOptions& options, const Backend& backend) {
  const double needed = estimate_cost(dump, options, backend).total_bytes();
  const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  if (needed <= memory) return;
  throw BackendError(
      fmt::format("{}: needs about {:.1f} GB of memory, this machine has {:.1f} GB; use fewer threads, fewer policies "
                  "at a time, or a dump with fewer queries ('laprox inspect' prints the plan)",
                  dump.path.string(), needed / 1e9, memory / 1e9));
}

}  // namespace laprox
