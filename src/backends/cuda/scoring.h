#pragma once

#include <map>
#include <memory>

#include "backends/cuda/kernels.h"
#include "backends/cuda/layer.h"
#include "laprox/backend.h"

namespace laprox::cuda {

/// The scoring primitives on the device; each is computed once per layer and kept in host memory. The layer goes to the
/// device when the first primitive asks for it.
class Scoring : public ScoringKernels {
 public:
  Scoring(const LayerTensors& layer, int device, int threads) : layer_(layer), device_(device), threads_(threads) {}

  const WindowStatistics& window_statistics(Index window) override;
  const Matrix& window_products(Index window) override;
  const Matrix& column_sums() override;
  void visit_heads(Index window, const HeadVisitor& visit) override;
  int threads() const override { return threads_; }
  const Matrix& value_norms() override;
  const Matrix& value_l1_norms() override;
  const Matrix& value_products() override;

 private:
  const Layer& on_device();
  QueryRange window_queries(Index window) const;
  void visit_head(const float* logits, const float* weights, const float* outputs, QueryRange range, Index kv_head,
                  Index head_in_group, const HeadVisitor& visit) const;

  const LayerTensors& layer_;
  int device_, threads_;
  Stream stream_;
  std::unique_ptr<DeviceLayer> device_layer_;
  DeviceBuffer<float2> partial_;
  DeviceBuffer<RowSoftmax> softmax_;
  std::map<Index, WindowStatistics> statistics_;
  std::map<Index, Matrix> window_products_;
  Matrix column_sums_, value_norms_, value_l1_norms_, value_products_;
};

/// A float matrix in device memory as a Matrix.
Matrix download_matrix(const float* source, Index rows, Index columns, cudaStream_t stream);

/// ||v_i W_O^h||_2: [query_heads, C].
Matrix value_norms(const Layer& layer, cudaStream_t stream);

}  // namespace laprox::cuda
