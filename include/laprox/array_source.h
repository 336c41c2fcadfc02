#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "laprox/layer_source.h"

namespace laprox {

class SharedContents;

/// Somebody else's row-major array, kept alive by `owner`. One in a device's memory has that and strides too; it is
/// used where it lies and must have the type that the backend computes in.
struct ArrayView {
  ElementType type{};
  std::vector<Index> shape;
  const std::byte* data = nullptr;
  std::shared_ptr<const void> owner;
  std::vector<Index> strides = {};  ///< in elements
  std::shared_ptr<const DeviceMemory> memory = nullptr;
};

/// The arrays of a layer, with the shapes of LayerTensors; output is [M, D].
enum class LayerArray { q, k, v, w_o, b_o, residual_norms, output };

std::string_view to_string(LayerArray array);

/// Layers from arrays that are in memory, or that `fetch` brings there when they are asked for. An array whose type is
/// the wanted one is used where it lies; any other is converted, one layer at a time.
class ArraySource : public LayerSource {
 public:
  /// One array of a layer. Of q and residual_norms exactly the given rows are wanted, [H_q, rows.count(), d] and
  /// [rows.count()]; the others ignore `rows`.
  /// May be called from another thread. What it throws passes through.
  using Fetch = std::function<ArrayView(Index layer, LayerArray array, DumpInfo::Rows rows)>;

  /// `threads`: how many look for values that are not finite; 0: all. Throws Bug where `info` has no layers.
  ArraySource(DumpInfo info, Fetch fetch, int threads = 1);

  const DumpInfo& info() const override { return info_; }
  LayerTensors read_layer(Index layer, DumpInfo::Rows rows, ElementType type) const override;
  void check_other_queries(Index layer, DumpInfo::Rows read) const override;
  std::optional<Matrix> read_output(Index layer) const override;
  std::string content_hash() const override { return {}; }

 private:
  Tensor read(Index layer, LayerArray array, DumpInfo::Rows rows, ElementType type) const;
  std::vector<Index> expected_shape(Index layer, LayerArray array, DumpInfo::Rows rows) const;

  DumpInfo info_;
  std::shared_ptr<SharedContents> shared_;  ///< of layers that read one cache
  Fetch fetch_;
  int threads_;
};

}  // namespace laprox
