#include <algorithm>
#include <vector>

#include "backends/cuda/laprox.h"

namespace laprox::cuda {

namespace {

/// Thread per token, block row per KV head: mean over the group of pooled attention norm times value norm.
__global__ void scores_kernel(const float* squares, const float* norms, int group, int context, int prefix, int kernel,
                              float* scores) {
  const int token = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (token >= context) return;
  float sum = 0;
  for (int head = static_cast<int>(blockIdx.y) * group; head < static_cast<int>(blockIdx.y + 1) * group; ++head) {
    const float* of_head = squares + static_cast<size_t>(head) * context;
    float attention = 0;
    if (token < prefix) {
      const int last = min(prefix - 1, token + kernel / 2);
      for (int i = max(0, token - kernel / 2); i <= last; ++i) attention += sqrtf(of_head[i]);
      attention /= static_cast<float>(kernel);
    } else {
      attention = sqrtf(of_head[token]);
    }
    sum += attention * norms[static_cast<size_t>(head) * context + token];
  }
  scores[static_cast<size_t>(blockIdx.y) * context + token] = sum / static_cast<float>(group);
}

}  // namespace

LaProxScores::LaProxScores(const Layer& layer, int window, int kernel)
    : layer_(layer),
      range_{layer.queries - std::min(window, layer.queries), std::min(window, layer.queries)},
      kernel_(kernel),
      squares_(static_cast<std::size_t>(layer.query_heads) * layer.context),
      norms_(squares_.size()),
      scores_(static_cast<std::size_t>(layer.kv_heads) * layer.context),
      pairs_(layer.query_heads) {
  std::vector<FormPair> pairs;
  for (int head = 0; head < layer.query_heads; ++head) pairs.push_back({head, head});
  upload(pairs_.data(), pairs.data(), pairs.size(), side_);
}

void LaProxScores::launch(cudaStream_t stream) {
  begin_.record(stream);
  begin_.hold(side_);
  pack_forms(layer_, pairs_.data(), layer_.query_heads, forms_, side_);
  value_forms(layer_, forms_, layer_.group, true, norms_.data(), side_);
  end_.record(side_);
  row_softmax(layer_, range_, partial_, softmax_, stream);
  window_columns(layer_, range_, softmax_.data(), nullptr, squares_.data(), stream);
  end_.hold(stream);
  const dim3 grid((layer_.context + 255) / 256, layer_.kv_heads);
  scores_kernel<<<grid, 256, 0, stream>>>(squares_.data(), norms_.data(), layer_.group, layer_.context,
                                          layer_.context - range_.count, kernel_, scores_.data());
  check_launch("LaProx scores");
}

}  // namespace laprox::cuda
