#pragma once

#include <memory>

#include "backends/cuda/kernels.h"
#include "backends/cuda/layer.h"
#include "laprox/backend.h"
#include "laprox/cuda.h"

namespace laprox::cuda {

/// The scoring primitives on the device, with results in host memory. The layer goes to the device when the first
/// primitive asks for it.
class Scoring : public ScoringKernels {
 public:
  Scoring(const LayerTensors& layer, int device, int threads) : layer_(layer), device_(device), threads_(threads) {}

  void visit_heads(Index window, const HeadVisitor& visit) override;
  int threads() const override { return threads_; }

 protected:
  WindowStatistics compute_window_statistics(Index window) override;
  Matrix compute_window_products(Index window) override;
  Matrix compute_column_sums() override;
  Matrix compute_value_norms() override;
  Matrix compute_value_l1_norms() override;
  Matrix compute_value_products() override;
  Matrix compute_removal_energies(Index window, OverQueries over, bool joint) override;
  Matrix compute_far_energies(Index distance, Index queries) override;

 private:
  /// What a primitive holds while it works.
  struct Working {
    UseDevice device;
    UsePool pool;
    const Layer& layer;
  };
  Working start();
  const Layer& layer_on_device();
  QueryRange window_queries(Index window) const;
  void visit_head(const float* logits, const float* weights, const float* outputs, QueryRange range, Index kv_head,
                  Index head_in_group, const HeadVisitor& visit) const;

  const LayerTensors& layer_;
  int device_, threads_;
  Stream stream_;
  std::unique_ptr<DeviceLayer> device_layer_;
  DeviceBuffer<float2> partial_;
  DeviceBuffer<RowSoftmax> softmax_;
};

/// A float matrix in device memory as a Matrix, widened by `threads` threads.
Matrix download_matrix(const float* source, Index rows, Index columns, int threads, cudaStream_t stream);

/// ||v_i W_O^h||_2: [query_heads, C].
Matrix value_norms(const Layer& layer, int threads, cudaStream_t stream);

}  // namespace laprox::cuda
