#include "laprox/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/exchange.h"
#include "dump/layer_stream.h"
#include "laprox/error.h"
#include "laprox/shares.h"
#include "replay/share.h"

namespace laprox {

namespace {

/// The smallest range of stored queries that covers the output positions.
DumpInfo::Rows output_rows(const DumpInfo& dump) {
  if (dump.output_positions.empty()) return {0, 0};
  return dump.rows_between(dump.output_positions.front(), dump.output_positions.back() + 1);
}

/// Rows of `exact`, whose positions are the layer's queries, at the output positions.
Matrix at_output_positions(const Matrix& exact, const LayerTensors& layer, const std::vector<Index>& positions) {
  Matrix rows(static_cast<Index>(positions.size()), exact.cols());
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const auto found = std::lower_bound(layer.query_positions.begin(), layer.query_positions.end(), positions[i]);
    require(found != layer.query_positions.end() && *found == positions[i], "outputs are stored for stored queries");
    rows.row(static_cast<Index>(i)) = exact.row(found - layer.query_positions.begin());
  }
  return rows;
}

double relative_difference(const Matrix& found, const Matrix& expected) {
  const double difference = (found - expected).norm(), norm = expected.norm();
  if (difference == 0) return 0;
  return norm > 0 ? difference / norm : std::numeric_limits<double>::infinity();
}

}  // namespace

double self_check_tolerance(const LayerSummary& layer) {
  double tolerance = 1e-3;
  for (const ElementType type : {layer.q_type, layer.k_type, layer.v_type, layer.w_o_type}) {
    if (type == ElementType::float16) tolerance = std::max(tolerance, 1e-2);
    if (type == ElementType::bfloat16) tolerance = std::max(tolerance, 5e-2);
  }
  return tolerance;
}

void require_passed(const DumpInfo& info, const std::vector<LayerCheck>& checks) {
  for (std::size_t n = 0; n < checks.size(); ++n) {
    if (checks[n].passed()) continue;
    throw VerificationError(fmt::format(
        "{}: /layers/{}: the self-check failed: expected the stored output to within {:.0e}, found a relative error "
        "of {:.1e}; the dump lacks something that the model did (scale, softcap, sliding_window, sinks, b_o), or a "
        "tensor is wrong",
        info.path.string(), n, checks[n].tolerance, *checks[n].output_error));
  }
}

namespace {

/// A check that one rank made.
struct CheckOfLayer {
  std::size_t dump;
  Index layer;
  LayerCheck check;
};

LayerCheck check_layer(const LayerTensors& layer, const DumpInfo& info, const std::optional<Matrix>& output,
                       const Backend& backend) {
  LayerCheck check;
  check.tolerance = self_check_tolerance(info.layers[layer.layer]);
  if (output && layer.queries() > 0) {
    const ExactOutput exact = backend.layer_errors(layer, {}, SoftmaxMode::renormalized).exact;
    check.output_error = relative_difference(at_output_positions(exact.output, layer, info.output_positions), *output);
  }
  return check;
}

}  // namespace

std::vector<std::vector<LayerCheck>> check_dumps(const std::vector<const LayerSource*>& dumps, const Backend& backend,
                                                 Ranks& ranks, const DumpProgress& progress) {
  std::vector<const DumpInfo*> infos;
  for (const LayerSource* dump : dumps) infos.push_back(&dump->info());
  const auto rank_of = share_layers(infos, ranks.size());
  std::vector<CheckOfLayer> mine;
  for (std::size_t d = 0; d < dumps.size(); ++d) {
    const Share share = Share::of(ranks, rank_of[d]);
    // The stored outputs are read first: the file has one reader at a time, and the stream reads ahead.
    std::vector<std::optional<Matrix>> outputs;
    std::vector<LayerRead> reads;
    for (const Index layer : share.layers) {
      outputs.push_back(dumps[d]->read_output(layer));
      reads.push_back({dumps[d], layer, output_rows(*infos[d])});
    }
    LayerStream layers(std::move(reads), backend, true);
    for (std::size_t n = 0; n < share.layers.size(); ++n) {
      ranks.look_out();
      const LayerTensors layer = layers.next();
      mine.push_back({d, layer.layer, check_layer(layer, *infos[d], outputs[n], backend)});
      if (progress) progress(*infos[d], layer.layer, "check");
    }
  }
  std::vector<std::vector<LayerCheck>> checks;
  for (const DumpInfo* info : infos) checks.emplace_back(info->layers.size());
  for (const CheckOfLayer& each : joined_over_ranks(ranks, mine)) {
    checks[each.dump][each.layer] = each.check;
  }
  return checks;
}

std::vector<LayerCheck> check_dump(const LayerSource& dump, const Backend& backend, const Progress& progress) {
  const auto tell = [&](const DumpInfo& info, Index layer, const std::string& what) {
    if (progress) progress(layer, static_cast<Index>(info.layers.size()), what);
  };
  return check_dumps({&dump}, backend, single_rank(), tell)[0];
}

}  // namespace laprox
