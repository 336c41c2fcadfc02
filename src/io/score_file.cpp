#include "laprox/score_file.h"

#include <fmt/format.h>

#include "base/text.h"
#include "dump/layer_stream.h"
#include "dump/range.h"
#include "io/dump_layout.h"
#include "io/output_file.h"
#include "io/score_layout.h"
#include "laprox/error.h"
#include "laprox/report.h"
#include "laprox/version.h"

namespace laprox {

namespace {

template <class T>
void write_array(H5::Group& group, const std::string& name, const H5::PredType& type, const std::vector<Index>& shape,
                 const std::vector<T>& values) {
  const std::vector<hsize_t> extents(shape.begin(), shape.end());
  H5::DSetCreatPropList properties = io::dataset_properties();
  std::vector<hsize_t> chunk = extents;
  if (chunk.size() > 1) chunk[0] = 1;
  properties.setChunk(static_cast<int>(chunk.size()), chunk.data());
  properties.setShuffle();
  properties.setDeflate(2);
  group.createDataSet(name, type, H5::DataSpace(static_cast<int>(extents.size()), extents.data()), properties)
      .write(values.data(), type);
}

void write_matrix(H5::Group& group, const std::string& name, const Matrix& matrix) {
  write_array(group, name, H5::PredType::NATIVE_DOUBLE, {matrix.rows(), matrix.cols()},
              std::vector<double>(matrix.data(), matrix.data() + matrix.size()));
}

/// Finite tensors can have norms and sums that are not, which no other kernel could be compared with.
void write_primitive(H5::Group& group, const std::string& name, const Matrix& matrix, ElementType computed) {
  if (!matrix.allFinite()) {
    throw BackendError(fmt::format("{}/{}: a number is not finite: its terms leave the backend's range; {}",
                                   group.getObjName(), name, advice_on_range(computed)));
  }
  write_matrix(group, name, matrix);
}

/// The primitives on the queries that the policy reads; a policy without queries has none.
void write_primitives(H5::Group& group, const Policy& policy, const LayerTensors& layer, ScoringKernels& kernels) {
  const auto write = [&](const char* name, const Matrix& matrix) {
    write_primitive(group, name, matrix, layer.k.type());
  };
  const QueryNeed need = policy.scorer->traits().queries;
  if (need.kind == QueryNeed::Kind::window || need.kind == QueryNeed::Kind::judged) {
    const WindowStatistics& statistics = kernels.window_statistics(layer.queries());
    write("column_norms", statistics.squares.cwiseSqrt());
    write("column_sums", statistics.sum);
  }
  if (need.every()) write("column_sums", kernels.column_sums());
  write("value_norms", kernels.value_norms());
}

void write_rankings(H5::Group& group, const std::vector<Ranking>& rankings, Index context) {
  std::vector<std::int32_t> order;
  for (const Ranking& ranking : rankings) order.insert(order.end(), ranking.begin(), ranking.end());
  write_array(group, "ranking", H5::PredType::NATIVE_INT32, {static_cast<Index>(rankings.size()), context}, order);
}

/// 1 for every kept token: [budgets, kv_heads, C].
void write_kept(H5::Group& group, const Selection& selection, std::size_t layer, Index context) {
  const std::size_t heads = selection.counts[0][layer].size();
  std::vector<std::uint8_t> kept(selection.counts.size() * heads * static_cast<std::size_t>(context), 0);
  auto row = kept.begin();
  for (std::size_t b = 0; b < selection.counts.size(); ++b) {
    for (std::size_t head = 0; head < heads; ++head, row += context) {
      const Ranking& ranking = selection.rankings(b)[layer][head];
      for (Index n = 0; n < selection.counts[b][layer][head]; ++n) row[ranking[n]] = 1;
    }
  }
  write_array(group, "kept", H5::PredType::NATIVE_UINT8,
              {static_cast<Index>(selection.counts.size()), static_cast<Index>(heads), context}, kept);
}

/// The exact output of the decoded queries, where the dump has them.
void write_outputs(H5::H5File& file, const DumpReader& dump, const Backend& backend) {
  const DumpInfo& info = dump.info();
  const DumpInfo::Rows rows = info.rows_between(info.context_length, info.tokens);
  if (rows.count() == 0) return;
  H5::Group root = file.openGroup("/");
  const std::vector<std::int64_t> positions(info.query_positions.begin() + rows.first,
                                            info.query_positions.begin() + rows.last);
  write_array(root, "output_positions", H5::PredType::NATIVE_INT64, {rows.count()}, positions);
  for (std::size_t n = 0; n < info.layers.size(); ++n) {
    const LayerTensors layer = read_for(backend, dump, static_cast<Index>(n), rows);
    H5::Group group = file.openGroup(io::layer_object(layer.layer));
    const Matrix output = backend.layer_errors(layer, {}, SoftmaxMode::renormalized).exact.output;
    write_primitive(group, "output", output, layer.k.type());
  }
}

}  // namespace

void write_scores(const std::filesystem::path& path, const DumpReader& dump, const Policy& policy,
                  const std::vector<BudgetRequest>& budgets, const Backend& backend, bool replace,
                  const Progress& progress) {
  const DumpInfo& info = dump.info();
  SweepOptions options;
  options.policies = {policy};
  options.budgets = budgets;
  check_selection_request(info, options);
  if (policy.scorer->traits().depends_on_budget && budgets.size() != 1) {
    throw UsageError(fmt::format("policy '{}': its scores depend on the budget; give exactly one --budget, found {}",
                                 policy.label, budgets.size()));
  }
  const std::vector<std::filesystem::path> inputs{dump.info().path};
  io::OutputFile output(path, {replace, io::kScoreFormat}, inputs);
  const std::vector<Selection> selections = select_kept(dump, options, backend);
  try {
    H5::Group root = output.file().openGroup("/");
    io::write_attribute(root, "format", std::string(io::kScoreFormat));
    io::write_attribute(root, "version", static_cast<long long>(io::kScoreVersion));
    io::write_attribute(root, "policy", to_string(policy));
    io::write_attribute(root, "dump_sha256", dump.content_hash());
    io::write_attribute(root, "backend", std::string(backend.name()));
    io::write_attribute(root, "precision", std::string(to_string(backend.element_type())));
    io::write_attribute(root, "tool_version", version());
    std::vector<std::string> labels;
    for (const BudgetRequest& budget : budgets) labels.push_back(budget.text);
    if (!labels.empty()) io::write_attribute(root, "budgets", join(labels, ","));
    output.file().createGroup("/layers");
    visit_scores(
        dump, policy, budgets.empty() ? std::nullopt : std::optional(budgets[0]), backend,
        [&](const LayerTensors& layer, const Matrix& scores, ScoringKernels& kernels) {
          H5::Group group = output.file().createGroup(io::layer_object(layer.layer));
          const auto at = static_cast<std::size_t>(layer.layer);
          write_matrix(group, "scores", scores);
          write_rankings(group, selections[0].orders[0][at], info.context_length);
          write_primitives(group, policy, layer, kernels);
          if (!budgets.empty()) write_kept(group, selections[0], at, info.context_length);
        },
        progress);
    write_outputs(output.file(), dump, backend);
    root.close();
    output.commit();
  } catch (const H5::Exception& error) {
    throw FileError(fmt::format("{}: cannot be written ({}); is the disk full?", path.string(), error.getDetailMsg()));
  }
}

}  // namespace laprox
